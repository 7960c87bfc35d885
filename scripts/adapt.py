"""Episodes in a row under a controller that learns: share over the limit, reward and scale, as JSON and PNG.

    python scripts/adapt.py outputs/ballcircle-seed0 --cost-limit 20
    python scripts/adapt.py outputs/ballcircle-seed0 --cost-limit 10 --risk 0.05 0.2 --episodes 300

Some episodes are played side by side; the controller learns from each of them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from helpers import script_parser

from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.tasks import get_task
from spi_diffusers.envs import make_vector_env
from spi_diffusers.evaluation.evaluate import policy_task
from spi_diffusers.evaluation.plots import figure_at
from spi_diffusers.files import to_json
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.loading import load_pipeline

#: What is drawn of the episodes, and how axes call it.
PANELS = {"over": "share over the limit so far", "reward": "reward, mean so far", "scale": "scale"}


@own_numerics()
def episodes_in_a_row(pipeline: Any, args: argparse.Namespace, risk: float) -> dict[str, Any]:
    """Cost, return and scale of each episode, in the order in which they were played."""
    task = policy_task(pipeline, None)
    env = make_vector_env(task, args.parallel, seed=args.seed)
    controller = pipeline.controller(
        args.cost_limit, risk=risk, num_envs=args.parallel, max_episode_steps=task.max_episode_steps
    )
    played: dict[str, list[float]] = {"cost": [], "return": [], "scale": []}
    try:
        for _ in range(-(-args.episodes // args.parallel)):
            observation, infos = env.reset()
            controller.reset()
            returns, scale = np.zeros(args.parallel), controller.scale
            while not infos["ended"].all():
                observation, rewards, _, _, infos = env.step(controller.act(observation))
                controller.observe(infos["cost"], infos["ended"])
                returns += rewards
            played["cost"] += np.atleast_1d(controller.spent).tolist()
            played["return"] += returns.tolist()
            played["scale"] += [scale] * args.parallel
    finally:
        env.close()
    over = [cost > args.cost_limit for cost in played["cost"]]
    rewards = [task.normalize_reward(value) for value in played["return"]]
    return {
        "risk": risk,
        "episodes": len(over),
        "share_over": float(np.mean(over)),
        "normalized_reward": float(np.mean(rewards)),
        **played,
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel for each of `PANELS`, one line for each risk."""
    task = get_task(results["task"])
    with figure_at(path, (12.0, 3.6)) as figure:
        for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for number, run in enumerate(results["runs"]):
                numbers = np.arange(1, run["episodes"] + 1)
                over = np.array(run["cost"]) > results["cost_limit"]
                reward = [task.normalize_reward(value) for value in run["return"]]
                means = {"over": np.cumsum(over) / numbers, "reward": np.cumsum(reward) / numbers}
                values = means.get(name, run.get(name))
                axes.plot(numbers, values, color=f"C{number}", label=f"risk {run['risk']:g}")
                if name == "over":
                    axes.axhline(run["risk"], color=f"C{number}", linestyle=":")
            axes.set(xlabel="episode", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()
        figure.suptitle(f"{results['task']}, cost limit {results['cost_limit']:g}")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("policy", help="folder of a policy or of its run, or id on the Hub")
    parser.add_argument("--cost-limit", type=float, required=True, help="cost limit of an episode")
    parser.add_argument("--risk", type=float, nargs="+", default=[0.05, 0.2], help="(default: 0.05 0.2)")
    parser.add_argument("--episodes", type=int, default=300, help="episodes in a row (default: 300)")
    parser.add_argument("--parallel", type=int, default=10, help="of them side by side (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="decides the episodes (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("outputs/adapt"), help="folder of the files")
    args = parser.parse_args()
    pipeline = load_pipeline(args.policy)
    runs = [episodes_in_a_row(pipeline, args, risk) for risk in args.risk]
    name = policy_task(pipeline, None).short_name
    results = {"task": name, "cost_limit": args.cost_limit, "seed": args.seed, "parallel": args.parallel}
    results["runs"] = runs
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{name}-limit{args.cost_limit:g}.json"
    path.write_bytes(to_json(results))
    draw(results, path.with_suffix(".png"))
    for run in runs:
        print(
            f"{name}, limit {args.cost_limit:g}, risk {run['risk']:g}: {run['share_over']:.3f} of "
            f"{run['episodes']} over, normalized reward {run['normalized_reward']:.3f}, "
            f"scale {run['scale'][-1]:.3g} in the last"
        )
    print(f"Written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
