"""Measure how long a policy takes to choose an action.

Latency: one observation, 5 denoising steps, as in a control loop. Throughput: 1000 observations in one call.
Both for the paper's extraction (Eq. 12), which draws 50 candidate actions, and for safe extraction, which has
one for each safety weight, with the limit alone and with the budget fed back. Observations are real ones,
passed as NumPy as a simulator gives them.

Speed does not depend on the weights, so without --policy an untrained policy of the default size is measured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from helpers import (
    check_cores,
    measure_and_save,
    measuring_parser,
    peak_memory_mb,
    positive,
    print_table,
    run_pinned,
)

from spi_diffusers.cli import run_with_messages

if TYPE_CHECKING:
    import numpy as np

    from spi_diffusers.data.transitions import TransitionDataset
    from spi_diffusers.pipelines import SPIPolicyPipeline

EPILOG = """\
examples:
  python scripts/benchmark_inference.py                           an untrained policy of the default size
  python scripts/benchmark_inference.py --policy outputs/demo/policy --dataset embedded
  python scripts/benchmark_inference.py --cores 2 --no-save       two cores, without rewriting the results

how to read it:
  median, 99%    milliseconds of one call with one observation: half, or 99% of the calls were faster
  actions/s      observations per second in calls of 1000 observations (median call)
The extractions take turns, so that other work on the machine slows all of them down alike."""

COST_LIMIT = 20.0
BATCH = 1000
TURNS = 10
WARMUP_CALLS = 20


def untrained_policy(dataset: "TransitionDataset", task: str) -> "SPIPolicyPipeline":
    """What training would save after no update at all, with an evaluation critic that has made one."""
    from spi_diffusers.config.layers import make_train_config
    from spi_diffusers.training.evaluation_stage import fit_evaluation_critic
    from spi_diffusers.training.trainer import Trainer

    pipeline = Trainer(make_train_config({"task": task}), dataset, progress=False).policy()
    critic = fit_evaluation_critic(pipeline, dataset, updates=1, progress=False)
    pipeline.register_modules(evaluation_critic=critic)
    return pipeline


def calls(extraction: str, count: int, num_steps: int, candidates: int) -> Iterator[dict[str, Any]]:
    """Arguments of `count` calls, as in an episode whose cost grows at the allowed rate."""
    for call in range(count):
        step = call % num_steps
        if extraction == "reward":
            yield {"extraction": "reward", "num_candidates": candidates}
        elif extraction == "safe, limit":
            yield {"cost_limit": COST_LIMIT}
        else:
            budget = COST_LIMIT * (1.0 - step / num_steps)
            yield {"cost_budget": budget, "steps_left": num_steps - step}


EXTRACTIONS = ("reward", "safe, limit", "safe, budget")


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_policy(
    pipeline: "SPIPolicyPipeline", observations: "np.ndarray", args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Latency and throughput of every extraction; observations of shape (N, O) are used in turn."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    num_steps = pipeline.config.max_episode_steps
    shared = {"num_inference_steps": args.steps, "generator": generator}
    latency: dict[str, list[float]] = {name: [] for name in EXTRACTIONS}
    duration: dict[str, list[float]] = {name: [] for name in EXTRACTIONS}
    batches = np.resize(observations, (BATCH, observations.shape[1]))
    rows, candidates = iter(np.resize(observations, (10**6, observations.shape[1]))), {}

    for name in EXTRACTIONS:
        for keywords in calls(name, WARMUP_CALLS, num_steps, args.candidates):
            output = pipeline(next(rows), **keywords, **shared)
        candidates[name] = output.candidates.shape[1]
        pipeline(batches, **keywords, **shared)
    per_turn = -(-args.calls // TURNS)
    for _ in range(TURNS):
        for name in EXTRACTIONS:
            for keywords in calls(name, per_turn, num_steps, args.candidates):
                row = next(rows)
                latency[name].append(timed(lambda: pipeline(row, **keywords, **shared)))  # noqa: B023
            duration[name].append(timed(lambda: pipeline(batches, **keywords, **shared)))  # noqa: B023
    return [
        {
            "extraction": name,
            "candidates": candidates[name],
            "calls": len(latency[name]),
            "latency_ms_median": round(1e3 * float(np.median(latency[name])), 3),
            "latency_ms_99": round(1e3 * float(np.quantile(latency[name], 0.99)), 3),
            "latency_ms_min": round(1e3 * min(latency[name]), 3),
            "actions_per_second": round(BATCH / float(np.median(duration[name]))),
        }
        for name in EXTRACTIONS
    ]


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one policy on real observations."""
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.pipelines import SPIPolicyPipeline

    dataset = load_transitions(args.dataset, args.task)
    if args.policy is None:
        pipeline = untrained_policy(dataset, args.task)
    else:
        pipeline = SPIPolicyPipeline.from_pretrained(args.policy)
    if pipeline.config.max_episode_steps is None:
        raise SystemExit(f"error: {args.policy} does not know its task's episode length.")
    rows = measure_policy(pipeline, dataset.transitions.observation[:5000].numpy(), args)
    return {
        "cores": args.worker_cores,
        "hidden_dims": list(pipeline.noise_model.config.hidden_dims),
        "dtype": str(pipeline.noise_model.dtype).removeprefix("torch."),
        "peak_memory_mb": peak_memory_mb(),
        "extractions": rows,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    print(f"Measuring {args.calls} calls per extraction: a minute or two per core count.", file=sys.stderr)
    names = ("calls", "candidates", "steps", "task", "policy", "dataset")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    forwarded = [f"--{name}={value}" for name, value in given.items()]
    return {
        "settings": {
            "policy": args.policy or "untrained",
            "task": args.task,
            "num_candidates": args.candidates,
            "num_inference_steps": args.steps,
            "batch": BATCH,
        },
        "results": [run_pinned(cores, forwarded) for cores in check_cores(args.cores)],
    }


def show(results: dict[str, Any]) -> None:
    """Print one table per number of cores."""
    line = "{extraction} | {candidates} | {latency_ms_median:.2f} ms | {latency_ms_99:.2f} ms"
    line += " | {actions_per_second:,}"
    for part in results["results"]:
        title = f"Choosing an action on {part['cores']} core(s), {part['dtype']}"
        headings = f"extraction | candidates | median | 99% | actions/s at {BATCH}"
        print_table(title, headings, [line.format(**row) for row in part["extractions"]])


def main() -> None:
    parser = measuring_parser(__doc__, EPILOG)
    parser.add_argument("--policy", help="policy folder or Hub id (default: untrained, of the default size)")
    parser.add_argument("--task", default="ballcircle", help="task of the data (default: ballcircle)")
    parser.add_argument("--dataset", help="where observations come from, as for `spi train`")
    parser.add_argument("--cores", type=int, nargs="+", default=[1], help="core counts (default: 1)")
    parser.add_argument("--calls", type=positive(int), default=1000, help="timed calls (default: 1000)")
    parser.add_argument(
        "--candidates", type=positive(int), default=50, help="candidates of reward extraction (default: 50)"
    )
    parser.add_argument("--steps", type=positive(int), default=5, help="denoising steps (default: 5)")
    measure_and_save(parser.parse_args(), work, measure, show)


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
