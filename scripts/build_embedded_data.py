"""Rebuild the dataset that ships with the package: BallCircle, as it was collected into datasets/.

python scripts/build_embedded_data.py
"""

import argparse
from pathlib import Path

from spi_diffusers.data.loading import EMBEDDED_FOLDER, load_transitions
from spi_diffusers.data.writing import write_parquet_dataset

TASK = "OfflineBallCircle-v0"
MAX_BYTES = 8_000_000

DESCRIPTION = """\
The `OfflineBallCircle-v0` of this repository's `datasets/`, all {episodes} episodes of it; how they were
collected and chosen is said there. Actions were clipped to [-1, 1] before they were executed and stored.
Costs are 0 or 1. Episodes have 200 steps and end by the time limit."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", default="datasets", help="any form that --dataset takes (default: datasets)"
    )
    parser.add_argument("--output", type=Path, default=EMBEDDED_FOLDER, help="folder to write")
    args = parser.parse_args()

    whole = load_transitions(args.source, TASK)
    size = sum(file.stat().st_size for file in _files(args.source))
    if size > MAX_BYTES:
        raise SystemExit(
            f"{args.source}: {size} bytes are more than the {MAX_BYTES} that may ship with the package; "
            "collect with a smaller --max-bytes"
        )
    folder = write_parquet_dataset(
        whole,
        args.output,
        source=f"{Path(args.source).name}, content SHA-256 `{whole.sha256}`",
        description=DESCRIPTION.format(episodes=whole.num_episodes),
        location="spi_diffusers/data/embedded",
        overwrite=True,
    )
    print(f"{folder}: {whole.num_episodes} episodes, content sha256 {whole.sha256}")


def _files(source: str) -> list[Path]:
    folder = EMBEDDED_FOLDER if source == "embedded" else Path(source)
    return list((folder / TASK).rglob("*"))


if __name__ == "__main__":
    main()
