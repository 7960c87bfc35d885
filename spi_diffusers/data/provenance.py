"""What a dataset in the parquet layout says about where a config comes from, in a folder or on the Hub."""

from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.data.card import read_card
from spi_diffusers.data.summary import STATS_FILE, read_stats_file

UNKNOWN_LICENSE = "unknown"


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


def download_provenance(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[Path, str]:
    """Download the small files of a Hub dataset that `read_provenance` reads.

    Args:
        repo_id: `organisation/name`.
        revision: branch, tag or commit.
        token: access token for a private repository; True takes the stored one.

    Returns:
        The folder, and the commit that the files are of.

    Raises:
        Exception: the Hub's client cannot get them.
    """
    from huggingface_hub import snapshot_download

    wanted = ["README.md", f"*/{STATS_FILE}"]
    folder = snapshot_download(
        repo_id, repo_type="dataset", revision=revision, token=token, allow_patterns=wanted
    )
    return Path(folder), Path(folder).name  # a snapshot's folder is named by its commit


def _card_license(readme: Path) -> str:
    given = read_card(readme).data.get("license") if readme.is_file() else None
    if isinstance(given, list):  # of several it does not say which one is this config's
        given = given[0] if len(given) == 1 else None
    return str(given or UNKNOWN_LICENSE)
