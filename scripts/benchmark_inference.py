"""Measure how long a policy takes to choose an action.

Latency: one observation, 5 denoising steps, as in a control loop; and 32. Throughput: 1000 observations in
one call. All for the paper's extraction (Eq. 12), which draws 50 candidate actions, and for safe extraction,
which has one for each safety weight, with the limit alone and with the budget fed back; that also by the
graph that `spi export` writes, and both by the student of `spi distill`. Last, a controller's `act` and
`observe` without the time of the decision.
Observations are real ones, passed as NumPy as a simulator gives them.

Speed does not depend on the weights, so without --policy an untrained policy of the default size is measured.
"""

import argparse
import sys
import tempfile
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
  32             milliseconds of one call with 32 observations (median)
  actions/s      observations per second in calls of 1000 observations (median call)
The extractions take turns, so that other work on the machine slows all of them down alike."""

COST_LIMIT = 20.0
BATCH = 1000
COUNTS = (1, 32, BATCH)
TURNS = 10


def untrained_policy(dataset: "TransitionDataset", task: str) -> "SPIPolicyPipeline":
    """What training would save after no update at all, with a critic and a student that have made one."""
    from spi_diffusers.config.layers import make_train_config
    from spi_diffusers.deployment.distillation import DistillationSpec, train_student
    from spi_diffusers.training.evaluation_stage import fit_evaluation_critic
    from spi_diffusers.training.trainer import Trainer

    pipeline = Trainer(make_train_config({"task": task}), dataset, progress=False).policy()
    critic = fit_evaluation_critic(pipeline, dataset, updates=1, progress=False)
    pipeline.register_modules(evaluation_critic=critic)
    student, _ = train_student(pipeline, dataset, DistillationSpec(updates=1), progress=False)
    pipeline.register_modules(student=student)
    return pipeline


def calls(extraction: str, count: int, num_steps: int, candidates: int) -> Iterator[dict[str, Any]]:
    """Arguments of `count` calls, as in an episode whose cost grows at the allowed rate."""
    for call in range(count):
        step = call % num_steps
        if extraction == REWARD:
            yield {"extraction": "reward", "num_candidates": candidates}
        elif extraction == LIMIT:
            yield {"cost_limit": COST_LIMIT}
        else:
            budget = COST_LIMIT * (1.0 - step / num_steps)
            yield {"cost_budget": budget, "steps_left": num_steps - step}


REWARD, LIMIT, BUDGET = "reward", "safe, limit", "safe, budget"
EXPORTED, CONTROLLER = "safe, budget, exported", "the controller itself"
STUDENT, STUDENT_EXPORTED = "safe, budget, student", "safe, budget, student, exported"


class Timed:
    """A policy that notes how long its own decisions take."""

    def __init__(self, pipeline: "SPIPolicyPipeline") -> None:
        self.pipeline, self.seconds = pipeline, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        output = self.pipeline(*arguments, **keywords)
        self.seconds = time.perf_counter() - started
        return output


def controller_seconds(pipeline: "SPIPolicyPipeline", count: int) -> Callable[[Any, Any], float]:
    """What measures a step of a controller of so many environments, without the policy's decision."""
    import numpy as np

    from spi_diffusers.pipelines import SafeController

    policy = Timed(pipeline)
    controller = SafeController(policy, COST_LIMIT, num_envs=count)
    controller.reset()

    def seconds(observation: Any, _: Any) -> float:
        if np.max(controller.steps) == controller.pipeline.config.max_episode_steps - 1:
            controller.reset()
        started = time.perf_counter()
        controller.act(observation)
        controller.observe(0.0)
        return time.perf_counter() - started - policy.seconds

    return seconds


def call_seconds(policy: Callable[..., Any], **shared: Any) -> Callable[[Any, Any], float]:
    """What measures one call of a policy."""

    def seconds(observation: Any, keywords: Any) -> float:
        started = time.perf_counter()
        policy(observation, **keywords, **shared)
        return time.perf_counter() - started

    return seconds


def exported(pipeline: "SPIPolicyPipeline", folder: str, extraction: str) -> Callable[..., Any]:
    """The policy as a graph, in a folder that stays as long as it is used."""
    from spi_diffusers.deployment.export import export
    from spi_diffusers.runtime import ExportedPolicy

    pipeline.save_pretrained(f"{folder}/policy")
    return ExportedPolicy(export(folder, f"{folder}/{extraction}", extraction=extraction))


def measure_policy(
    pipeline: "SPIPolicyPipeline", observations: "np.ndarray", args: argparse.Namespace, folder: str
) -> list[dict[str, Any]]:
    """Times for 1, 32 and 1000 observations of (N, O), which are used in turn."""
    import numpy as np
    import torch

    from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID

    shared = {"num_inference_steps": args.steps, "generator": torch.Generator().manual_seed(0)}
    in_torch = call_seconds(pipeline, **shared)
    num_steps, per_turn = pipeline.config.max_episode_steps, -(-args.calls // TURNS)
    rows = iter(np.resize(observations, (10**6, observations.shape[1])))
    batches = {count: np.resize(observations, (count, observations.shape[1])) for count in COUNTS[1:]}
    meters = {name: dict.fromkeys(COUNTS, in_torch) for name in (REWARD, LIMIT, BUDGET)}
    meters[EXPORTED] = dict.fromkeys(COUNTS, call_seconds(exported(pipeline, folder, "safe")))
    if pipeline.student is not None:
        meters[STUDENT] = dict.fromkeys(COUNTS, call_seconds(pipeline, fast=True))
        graph = exported(pipeline, folder, "fast")
        meters[STUDENT_EXPORTED] = dict.fromkeys(COUNTS, call_seconds(graph))
    meters[CONTROLLER] = {count: controller_seconds(pipeline, count) for count in COUNTS}
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for name in meters for count in COUNTS}
    for turn in range(TURNS + 1):  # the first one warms up
        for name in meters:
            for keywords in calls(name, per_turn, num_steps, args.candidates):
                times[name, 1].append(meters[name][1](next(rows), keywords))
            for count, batch in batches.items():
                times[name, count].append(meters[name][count](batch, keywords))
            if turn == 0:
                for count in COUNTS:
                    times[name, count].clear()
    return [
        {
            "extraction": name,
            "candidates": args.candidates if name == REWARD else len(SAFETY_WEIGHT_GRID),
            "calls": len(times[name, 1]),
            "latency_ms_median": round(1e3 * float(np.median(times[name, 1])), 3),
            "latency_ms_99": round(1e3 * float(np.quantile(times[name, 1], 0.99)), 3),
            "latency_ms_min": round(1e3 * min(times[name, 1]), 3),
            "latency_ms_32": round(1e3 * float(np.median(times[name, 32])), 3),
            "actions_per_second": round(BATCH / float(np.median(times[name, BATCH]))),
        }
        for name in meters
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
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_policy(pipeline, dataset.transitions.observation[:5000].numpy(), args, folder)
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
    line += " | {latency_ms_32:.2f} ms | {actions_per_second:,}"
    for part in results["results"]:
        title = f"Choosing an action on {part['cores']} core(s), {part['dtype']}"
        headings = f"extraction | candidates | median | 99% | 32 | actions/s at {BATCH}"
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
