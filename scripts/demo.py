"""The whole job on the data in the package: train, evaluate, save, reload, act.

Trains safe SPI on BallCircle, evaluates it in the real simulator at several cost limits with safe extraction
and with the paper's, and writes the policy, results, plots and a video. To be quick it trains networks half
as wide with half as many updates as `spi train`: it keeps the limits, and earns a little less.

    python scripts/demo.py                                  # three to four minutes on two cores
    python scripts/demo.py --updates 15000 --width 256      # as `spi train`: six to nine minutes
"""

import logging
import sys
import time
from pathlib import Path

from helpers import script_parser
from rich.console import Console

from spi_diffusers.cli import run_with_messages
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.envs import make_env
from spi_diffusers.evaluation.evaluate import EvaluationSpec
from spi_diffusers.evaluation.folder import evaluate_to_folder
from spi_diffusers.evaluation.tables import results_tables
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.train import run_training

TASK = "OfflineBallCircle-v0"
COST_LIMITS = (10.0, 20.0, 40.0)
STAGES = 4


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of the run")
    parser.add_argument("--updates", type=int, default=7_500, help="training updates (default: 7500)")
    parser.add_argument("--width", type=int, default=128, help="of the networks' layers (default: 128)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes per cost limit (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and evaluation (default: 0)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    started = time.perf_counter()

    def stage(number: int, text: str) -> None:
        minutes = (time.perf_counter() - started) / 60
        console.rule(f"[bold]{number}/{STAGES}[/] {text}  [dim]({minutes:.1f} min so far)[/]", align="left")

    stage(1, "Load the BallCircle data in the package: a second.")
    dataset = load_transitions(None, TASK)
    episodes = dataset.episodes
    console.print(
        f"{dataset.num_episodes} episodes, {len(dataset.transitions):,} transitions; returns "
        f"{episodes.return_.min():.0f} to {episodes.return_.max():.0f}, cost returns "
        f"{episodes.cost_return.min():.0f} to {episodes.cost_return.max():.0f}."
    )

    settings = {"task": TASK, "seed": args.seed, "output_dir": str(args.output)}
    settings |= {"updates": args.updates, "network": {"hidden_dims": [args.width] * 3}}
    if (args.output / "checkpoints").exists():
        console.print(f"Going on with the run in {args.output}; delete that folder for a fresh one.")
        settings["resume"] = True
    config = make_train_config(settings)
    stage(2, f"Train safe SPI, {config.updates:,} updates, then its evaluation critic: two to three minutes.")
    trained = run_training(config)
    if trained.policy_folder is None:
        raise SystemExit(f"Training was stopped; `make demo` goes on from {args.output}.")

    stage(3, "Evaluate in the simulator: safe extraction at every limit, the paper's once: a minute.")
    spec = EvaluationSpec(cost_limits=COST_LIMITS, episodes=args.episodes, seeds=[args.seed])
    results, files = evaluate_to_folder(trained.policy_folder, spec, output=args.output)
    console.print(*results_tables(results, results.behavior))

    stage(4, "Reload the saved policy, as anyone would, and act for an episode.")
    pipeline = SPIPolicyPipeline.from_pretrained(str(trained.policy_folder))
    controller = pipeline.controller(cost_limit=10.0)
    env = make_env(TASK, seed=args.seed)
    observation, _ = env.reset()
    controller.reset()
    done = False
    while not done:
        observation, _, terminated, truncated, info = env.step(controller.act(observation))
        done = terminated or truncated
        controller.observe(info["cost"], done)
    env.close()
    console.print(f"With a cost limit of 10: cost {controller.spent:g}, {controller.status}.")
    console.rule(f"[bold]Done[/] in {(time.perf_counter() - started) / 60:.1f} minutes", align="left")
    console.print(f"policy   {trained.policy_folder}")
    for path in files:
        console.print(f"{path.stem:<8} {path}")


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
