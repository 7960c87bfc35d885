"""Rebuild the dataset that ships with the package: BallCircle, thinned to what fits into 8 MB.

python scripts/build_embedded_data.py --source OfflineBallCircle-v0.npz
"""

import argparse
from pathlib import Path

from spi_diffusers.data.loading import EMBEDDED_FOLDER, load_transitions
from spi_diffusers.data.thinning import thin_episodes
from spi_diffusers.data.writing import write_parquet_dataset

TASK = "OfflineBallCircle-v0"
NUM_EPISODES = 670
MAX_BYTES = 8_000_000

DESCRIPTION = """\
Collected by this project in the real simulator (`SafetyBallCircle-v0` of bullet-safety-gym): one PPO policy
conditioned on a cost budget (unconstrained, several Lagrangian cost targets, fixed penalties), the budget
drawn anew for each episode. Training episodes and low-noise probes were pooled and thinned on a grid over
(cost return, return). {kept} of those {total} episodes were then chosen by `spi_diffusers.data.thinning`: the
best 100 within each of the cost limits 10, 20 and 40, the best 5 at every cost return, and the rest spread
evenly over the plane. Actions were clipped to [-1, 1] before they were executed and stored. Costs are 0 or 1.
Episodes have 200 steps and end by the time limit."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="the whole dataset: any form that --dataset takes")
    parser.add_argument("--output", type=Path, default=EMBEDDED_FOLDER, help="folder to write")
    parser.add_argument("--episodes", type=int, default=NUM_EPISODES, help="number of episodes to keep")
    args = parser.parse_args()

    whole = load_transitions(args.source, TASK)
    thinned = whole.select_episodes(thin_episodes(whole.episodes, args.episodes, keep_within=100))
    folder = write_parquet_dataset(
        thinned,
        args.output,
        source=f"{Path(args.source).name}, content SHA-256 `{whole.sha256}`",
        description=DESCRIPTION.format(kept=thinned.num_episodes, total=whole.num_episodes),
        location="spi_diffusers/data/embedded",
        overwrite=True,
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {thinned.num_episodes} of {whole.num_episodes} episodes, {size} bytes")
    print(f"content sha256 {thinned.sha256}")
    if size > MAX_BYTES:
        raise SystemExit(f"{size} bytes are more than {MAX_BYTES}; keep fewer episodes with --episodes")


if __name__ == "__main__":
    main()
