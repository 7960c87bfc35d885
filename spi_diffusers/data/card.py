"""The dataset card of a folder in the parquet layout, made from its `stats.json` files alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.data.transitions import EpisodeTable
from spi_diffusers.documents import DocumentError, parse_yaml
from spi_diffusers.files import read_file, read_json
from spi_diffusers.messages import decimals, say, shown_limit

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

BEGIN = "<!-- spi-diffusers: tasks, written by write_parquet_dataset -->"
END = "<!-- spi-diffusers: end of tasks -->"
STATS_FILE, EPISODES_FILE = "stats.json", "episodes.parquet"
_MAX_CARD_BYTES = 2_000_000
_TEMPLATES = Path(__file__).parent


def read_card(readme: Path) -> "DatasetCard":
    """Read a dataset card; DatasetError where its YAML header is broken or its configs have no names."""
    from huggingface_hub import DatasetCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        content = read_file(readme, _MAX_CARD_BYTES + 1)
        if len(content) > _MAX_CARD_BYTES:
            raise DocumentError(f"the card has more than {_MAX_CARD_BYTES} bytes")
        text = content.decode("utf-8")
        if header := REGEX_YAML_BLOCK.search(text):
            parse_yaml(header[2])  # within our limits; the library has none
        card = DatasetCard(text)
        configs = [config["config_name"] for config in card.data.get("configs") or []]
    except Exception as error:  # yaml, huggingface_hub and plain type errors of a malformed header
        raise DatasetError(f"{readme}: the YAML header cannot be read: {say(error)}") from error
    if not all(isinstance(name, str) for name in configs):
        raise DatasetError(f"{readme}: `configs` in the YAML header must have names, not {configs}")
    return card


def declared_configs(readme: Path) -> dict[str, dict[str, Any]]:
    """What a dataset card says of each config, by its name, in its order; errors as for `read_card`."""
    if read_file(readme, 64).lstrip(b"\xef\xbb\xbf \r\n")[:3] != b"---":
        return {}  # no YAML header, of which the Hub's client would warn
    return {config["config_name"]: config for config in read_card(readme).data.get("configs") or []}


def declared_files(config: dict[str, Any]) -> dict[str, list[str]]:
    """The file patterns that a card names for a config, by split, in all forms that `datasets` takes."""
    files = config.get("data_files")
    if isinstance(files, dict) and "path" in files:
        files = [files]
    if isinstance(files, list) and all(isinstance(item, dict) for item in files):
        files = {item.get("split", "train"): item.get("path") for item in files}
    by_split = files if isinstance(files, dict) else {"train": files}
    listed = {split: [paths] if isinstance(paths, str) else paths for split, paths in by_split.items()}
    return {str(split): list(map(str, paths)) for split, paths in listed.items() if isinstance(paths, list)}


def make_card(
    tasks: list[dict[str, Any]],
    existing: Path | None,
    *,
    location: str,
    replaced: Sequence[dict[str, Any]] = (),
) -> "DatasetCard":
    """Make the card of a dataset folder; `str(card)` is the text of `README.md`.

    `tasks` are the `stats.json` contents of all configs. Of an `existing` card everything is kept except the
    configs of these tasks, of tasks that were removed, what `refresh_header` writes, and the section between
    our two marks. `location` is what a reader passes to `load_transitions`; `replaced` is as for
    `refresh_header`. Raises DatasetError if the existing card cannot be read.
    """
    from huggingface_hub import DatasetCard, DatasetCardData
    from jinja2 import Environment

    environment = Environment(keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((_TEMPLATES / "dataset_card_section.md").read_text(encoding="utf-8"))
    bounded = all(task["config"] in TASKS for task in tasks)
    several = any("cost_names" in task for task in tasks)
    how = {"three": _min_median_max, "limit": _limit, "bounded": bounded, "several": several}
    section = template.render(tasks=tasks, begin=BEGIN, end=END, **how).strip()
    if existing is None:
        data = DatasetCardData(
            license=_license(tasks),
            task_categories=["reinforcement-learning"],
            pretty_name="Offline safe reinforcement learning",
            tags=["offline-rl", "safe-rl", "dsrl", "spi-diffusers"],
            size_categories=[size_category(_rows(tasks))],
            configs=_merge_configs([], tasks),
        )
        return DatasetCard.from_template(
            data,
            template_path=str(_TEMPLATES / "dataset_card.md"),
            title="Offline safe reinforcement learning",
            location=json.dumps(location, ensure_ascii=False)[1:-1],  # inside the quotes of Python code
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
    """Write size and license anew into a card's YAML header; a license that we did not write is kept.

    `tasks` are the `stats.json` contents of every config, `replaced` those of configs just replaced, whose
    licenses were ours, too.
    """
    card.data["size_categories"] = [size_category(_rows(tasks))]
    given = card.data.get("license") or []
    ours = set(_licenses([*tasks, *replaced]))
    if ours.issuperset([given] if isinstance(given, str) else given):
        card.data["license"] = _license(tasks)


def save_scatter(episodes: EpisodeTable, path: Path, *, title: str, cost_limits: Sequence[float]) -> None:
    """Draw cost return against return, one point per episode, with the usual cost limits as dashed lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=100, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.scatter(episodes.cost_return, episodes.return_, s=9, alpha=0.6, linewidths=0, color="#2b6cb0")
    for limit in cost_limits:
        axes.axvline(limit, color="#c05621", linewidth=0.8, linestyle="--")
        axes.annotate(f"{limit:g}", (limit, 1), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    # Of several costs it is their sum, where no limit has a place.
    several = episodes.cost_returns.shape[1] > 1
    cost = "sum of the costs, each in its own unit" if several else "cost return"
    axes.set_xlabel(f"{cost} of the episode" + " (dashed: usual cost limits)" * (not several))
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


def _limit(limit: Any) -> Any:
    """A limit as the card shows it: as it is, of several costs in few digits."""
    return f"({shown_limit(limit)})" if isinstance(limit, list | tuple) else limit


def _min_median_max(summary: dict[str, float]) -> str:
    digits = decimals(summary["max"])
    return " / ".join(f"{summary[key]:.{digits}f}" for key in ("min", "median", "max"))


def _licenses(tasks: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({str(task.get("license", "unknown")) for task in tasks})


def _license(tasks: Sequence[dict[str, Any]]) -> str | list[str]:
    """The license of all configs; where they differ a list, which the Hub shows as several licenses."""
    licenses = _licenses(tasks)
    return licenses[0] if len(licenses) == 1 else licenses


def _rows(tasks: Sequence[dict[str, Any]]) -> int:
    return sum(task["num_transitions"] for task in tasks)


def size_category(rows: int) -> str:
    """The Hub's category for a number of rows."""
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = next((k for k in range(len(marks)) if rows < 10 ** (k + 3)), len(marks))
    if power == 0:
        return f"n<{marks[0]}"
    return f"{marks[power - 1]}<n<{marks[power]}" if power < len(marks) else f"n>{marks[-1]}"


def read_stats_file(path: Path) -> dict[str, Any]:
    """Read a config's `stats.json`; what is not a JSON object is a DatasetError."""
    try:
        return read_json(path)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def read_stats(folder: Path) -> list[dict[str, Any]]:
    """Read the `stats.json` of all configs that `write_parquet_dataset` wrote, by their names in order."""
    contents = {path.parent.name: read_stats_file(path) for path in sorted(folder.glob(f"*/{STATS_FILE}"))}
    return [stats for config, stats in contents.items() if stats.get("config") == config]
