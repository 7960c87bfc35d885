"""The dataset card of a folder in the parquet layout, made from its `stats.json` files alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.data.transitions import EpisodeTable

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

BEGIN = "<!-- spi-diffusers: tasks, written by write_parquet_dataset -->"
END = "<!-- spi-diffusers: end of tasks -->"
STATS_FILE, EPISODES_FILE = "stats.json", "episodes.parquet"
UNKNOWN_LICENSE = "unknown"
_TEMPLATES = Path(__file__).parent


def read_card(readme: Path) -> "DatasetCard":
    """Read a dataset card.

    Args:
        readme: the `README.md` file.

    Returns:
        The card; its `data` holds the YAML header.

    Raises:
        DatasetError: the YAML header cannot be read, or its `configs` are not a list of named configs.
    """
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard.load(readme)
        configs = [config["config_name"] for config in card.data.get("configs") or []]
    except Exception as error:  # yaml, huggingface_hub and plain type errors of a malformed header
        raise DatasetError(f"{readme}: the YAML header cannot be read: {error}") from error
    if not all(isinstance(name, str) for name in configs):
        raise DatasetError(f"{readme}: `configs` in the YAML header must have names, not {configs}")
    return card


def make_card(
    tasks: list[dict[str, Any]],
    existing: Path | None,
    *,
    location: str,
    replaced: Sequence[dict[str, Any]] = (),
) -> "DatasetCard":
    """Write the card of a dataset folder.

    Args:
        tasks: the `stats.json` content of every task of the folder, in the wanted order.
        existing: the folder's present `README.md`, where there is one: everything of it is kept except
            the configs of these tasks, of tasks that were removed, what `refresh_header` writes, and the
            section between our two marks.
        location: what a reader passes to `load_transitions` to get the data (Hub id or folder name).
        replaced: as for `refresh_header`.

    Returns:
        The card; `str(card)` is the text of `README.md`.

    Raises:
        DatasetError: the YAML header of the existing card cannot be read.
    """
    from huggingface_hub import DatasetCard, DatasetCardData
    from jinja2 import Environment

    environment = Environment(keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((_TEMPLATES / "dataset_card_section.md").read_text(encoding="utf-8"))
    bounded = all(task["config"] in TASKS for task in tasks)
    section = template.render(
        tasks=tasks, three=_min_median_max, bounded=bounded, begin=BEGIN, end=END
    ).strip()
    if existing is None:
        data = DatasetCardData(
            license=_license(tasks),
            task_categories=["reinforcement-learning"],
            pretty_name="Offline safe reinforcement learning",
            tags=["offline-rl", "safe-rl", "dsrl", "spi-diffusers"],
            size_categories=_size_categories(tasks),
            configs=_merge_configs([], tasks),
        )
        return DatasetCard.from_template(
            data,
            template_path=str(_TEMPLATES / "dataset_card.md"),
            title="Offline safe reinforcement learning",
            location=location,
            tasks=tasks,
            section=section,
        )
    card = read_card(existing)
    card.data["configs"] = _merge_configs(card.data.get("configs") or [], tasks)
    refresh_header(card, tasks, replaced=replaced)
    before, mark, rest = card.text.partition(BEGIN)
    if mark and END not in rest:
        raise DatasetError(
            f"{existing}: the line {END} is missing after {BEGIN}, so where our part ends is not known; put "
            "it back, or remove both to get a new part at the end"
        )
    after = rest.partition(END)[2] if mark else ""
    card.text = f"{before.rstrip()}\n\n{section}\n{after}"
    return card


def refresh_header(
    card: "DatasetCard", tasks: Sequence[dict[str, Any]], *, replaced: Sequence[dict[str, Any]] = ()
) -> None:
    """Write size and licence anew into a card's YAML header; a licence that we did not write is kept.

    Args:
        card: is changed.
        tasks: the `stats.json` content of every config.
        replaced: the same of configs that have just been replaced: their licences were ours, too.
    """
    card.data["size_categories"] = _size_categories(tasks)
    given = card.data.get("license") or []
    ours = set(_licenses([*tasks, *replaced]))
    if ours.issuperset([given] if isinstance(given, str) else given):
        card.data["license"] = _license(tasks)


def save_scatter(episodes: EpisodeTable, path: Path, *, title: str, cost_limits: tuple[float, ...]) -> None:
    """Draw cost return against return, one point per episode, with the usual cost limits.

    Args:
        episodes: what to draw.
        path: the PNG file to write.
        title: heading of the plot.
        cost_limits: drawn as vertical lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=100, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.scatter(episodes.cost_return, episodes.return_, s=9, alpha=0.6, linewidths=0, color="#2b6cb0")
    for limit in cost_limits:
        axes.axvline(limit, color="#c05621", linewidth=0.8, linestyle="--")
        axes.annotate(f"{limit:g}", (limit, 1), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    axes.set_xlabel("cost return of the episode (dashed: usual cost limits)")
    axes.set_ylabel("return of the episode")
    axes.set_title(title, fontsize=10, pad=12)
    # Without the version of matplotlib in its header the same data gives the same file.
    figure.savefig(path, metadata={"Software": None})


def written_config(name: str) -> dict[str, Any]:
    """How a card declares a config that `write_parquet_dataset` wrote."""
    return {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*.parquet"}]}


def _merge_configs(configs: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The configs of these tasks, and those that others declared; ours whose folder is gone are dropped."""
    ours = [written_config(task["config"]) for task in tasks]
    names = {config["config_name"] for config in ours}
    kept = [
        config
        for config in configs
        if config["config_name"] not in names and config != written_config(config["config_name"])
    ]
    return sorted([*kept, *ours], key=lambda config: config["config_name"])


def _min_median_max(summary: dict[str, float]) -> str:
    return " / ".join(f"{summary[key]:.1f}" for key in ("min", "median", "max"))


def _licenses(tasks: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({str(task.get("license", "unknown")) for task in tasks})


def _license(tasks: Sequence[dict[str, Any]]) -> str | list[str]:
    """The licence of all configs; where they differ a list, which the Hub shows as several licences."""
    licenses = _licenses(tasks)
    return licenses[0] if len(licenses) == 1 else licenses


def _size_categories(tasks: Sequence[dict[str, Any]]) -> list[str]:
    """The Hub's category for the rows of all configs together."""
    rows = sum(task["num_transitions"] for task in tasks)
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = next((k for k in range(len(marks)) if rows < 10 ** (k + 3)), len(marks))
    if power == 0:
        return [f"n<{marks[0]}"]
    return [f"{marks[power - 1]}<n<{marks[power]}" if power < len(marks) else f"n>{marks[-1]}"]


def read_stats_file(path: Path) -> dict[str, Any]:
    """Read a config's `stats.json`.

    Args:
        path: the file, which must exist.

    Returns:
        Its content; empty where that is not an object.

    Raises:
        DatasetError: the file is not JSON.
    """
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: is not JSON: {error}") from error
    return stats if isinstance(stats, dict) else {}


def read_stats(folder: Path) -> list[dict[str, Any]]:
    """Read the statistics of all configs that `write_parquet_dataset` wrote.

    Args:
        folder: in the parquet layout; need not exist.

    Returns:
        The content of each `stats.json`, in the order of the configs' names.

    Raises:
        DatasetError: a file is not JSON.
    """
    stats = []
    for path in sorted(folder.glob(f"*/{STATS_FILE}")):
        content = read_stats_file(path)
        if content.get("config") == path.parent.name:
            stats.append(content)
    return stats


@dataclass(frozen=True)
class Provenance:
    """Where a config comes from.

    Attributes:
        source: file, dataset and commit, as far as they are known.
        license: licence id as the Hub knows it.
        description: how the data was made (Markdown); may be empty.
    """

    source: str
    license: str
    description: str


def read_provenance(folder: Path, config: str, *, source: str) -> Provenance:
    """Read it from a config's statistics, or else from the dataset's card.

    Args:
        folder: in the parquet layout; the rows need not be there.
        config: name of the config.
        source: what to say where nothing says it.

    Returns:
        What is known.

    Raises:
        DatasetError: `stats.json` is not JSON, or the card's YAML header cannot be read.
    """
    path = folder / config / STATS_FILE
    stats = read_stats_file(path) if path.is_file() else {}
    return Provenance(
        source=str(stats.get("source") or source),
        license=str(stats.get("license") or _card_license(folder / "README.md")),
        description=str(stats.get("description") or ""),
    )


def download_provenance(repo_id: str, *, revision: str | None = None) -> tuple[Path, str]:
    """Download the small files of a Hub dataset that `read_provenance` reads.

    Args:
        repo_id: `organisation/name`.
        revision: branch, tag or commit.

    Returns:
        The folder, and the commit that the files are of.

    Raises:
        Exception: the Hub's client cannot get them.
    """
    from huggingface_hub import snapshot_download

    wanted = ["README.md", f"*/{STATS_FILE}"]
    folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=wanted)
    return Path(folder), Path(folder).name  # a snapshot's folder is named by its commit


def _card_license(readme: Path) -> str:
    given = read_card(readme).data.get("license") if readme.is_file() else None
    if isinstance(given, list):  # of several it does not say which one is this config's
        given = given[0] if len(given) == 1 else None
    return str(given or UNKNOWN_LICENSE)
