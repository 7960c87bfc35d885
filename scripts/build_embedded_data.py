"""Rebuild the dataset that ships with the package: BallCircle, as `spi data collect` left it in datasets/.

python scripts/build_embedded_data.py
"""

import json
import sys
from pathlib import Path

from helpers import script_parser

from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.card import STATS_FILE
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import EMBEDDED_FOLDER
from spi_diffusers.data.writing import write_parquet_dataset

TASK = "OfflineBallCircle-v0"
COLLECTED = Path(__file__).resolve().parent.parent / "datasets"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED_FOLDER, help="folder to write")
    args = parser.parse_args()

    dataset = load_transitions(COLLECTED, TASK)
    # Whoever has only the package should read on its card how the data was made.
    made = json.loads((COLLECTED / TASK / STATS_FILE).read_text(encoding="utf-8"))
    folder = write_parquet_dataset(
        dataset,
        args.output,
        source=made["source"],
        description=made["description"],
        license=made["license"],
        location="spi_diffusers/data/embedded",
        overwrite=True,
    )
    print(f"{folder}: {dataset.num_episodes} episodes, content sha256 {dataset.sha256}")


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
