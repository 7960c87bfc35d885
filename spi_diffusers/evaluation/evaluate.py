"""Evaluate a policy: cost limits x extractions x seeds, boiled down to entries of the results file.

Evaluation reads a finished policy. Nothing of what it measures may go back into training or calibration.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import spi_diffusers
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs.wrappers import check_seed
from spi_diffusers.evaluation.metrics import (
    BASELINE_EXTRACTION,
    EvaluationEntry,
    TrainInfo,
    check_cost_limit,
)
from spi_diffusers.evaluation.rollouts import (
    BaselinePolicy,
    PipelinePolicy,
    Policy,
    Rollout,
    check_extraction,
    rollout,
)

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

#: Called after each rollout with the name of the extraction and the episodes.
RolloutCallback = Callable[[str, Rollout], None]

_SIMULATOR_PACKAGES = {
    "bullet": ("bullet-safety-gym", "pybullet"),
    "velocity": ("mujoco",),
    "safety_gymnasium": ("safety-gymnasium", "mujoco"),
    "metadrive": ("metadrive-simulator",),
}

#: What plays instead where it is asked for, as `simulator` of `make_vector_env`.
_CHOSEN_PACKAGES = {
    "safety_gymnasium": ("safety-gymnasium",),
    "dsrl": ("dsrl", "safety-gymnasium"),
}


def evaluate(
    pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline",
    task: str | Task | None = None,
    *,
    train_info: TrainInfo,
    cost_limits: Iterable[float] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    extractions: Iterable[str] = ("safe", "reward"),
    feedback: bool = True,
    num_candidates: int | None = None,
    num_inference_steps: int | None = None,
    backend: str = "sync",
    simulator: str = "auto",
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> list[EvaluationEntry]:
    """Evaluate a pipeline at several cost limits.

    All arguments are checked before the first episode is played.

    Args:
        pipeline: the policy. A baseline's is played once and measured against every limit.
        task: the task or its name; None takes the pipeline's own.
        train_info: where the weights come from.
        cost_limits: limits per episode; None takes the task's defaults, for a baseline the one it was
            trained for.
        episodes: episodes per evaluation seed; 20 is DSRL's protocol.
        seeds: evaluation seeds; an entry takes the episodes of all of them together.
        extractions: "safe" and / or "reward" (the paper's Eq. 12, which is played once for all limits,
            because it knows none).
        feedback: with safe extraction, tell the policy at every step what is left of the limit.
        num_candidates: candidate actions per observation; None takes the pipeline's default.
        num_inference_steps: denoising steps; None takes the pipeline's default.
        backend: see `make_vector_env`.
        simulator: see `make_vector_env`.
        progress: show progress bars.
        on_rollout: gets the episodes of every rollout, e.g. to plot them.

    Returns:
        One entry per extraction and limit, sorted as in a results file.

    Raises:
        ValueError: the pipeline was trained for another task, or an argument is out of its range.
        SimulatorNotInstalledError: the task's simulator is missing.
    """
    task = policy_task(pipeline, task)
    settings: dict[str, Any] = {
        "train_info": train_info,
        "episodes": episodes,
        "backend": backend,
        "simulator": simulator,
        "progress": progress,
        "on_rollout": on_rollout,
        "seeds": _listed("seeds", seeds),
    }
    if not is_spi(pipeline):
        return evaluate_policy(
            BaselinePolicy(pipeline),
            task,
            extraction=BASELINE_EXTRACTION,
            knows_limit=False,
            cost_limits=_listed("cost_limits", cost_limits, [pipeline.config.cost_limit]),
            **settings,
        )
    extractions = [check_extraction(name) for name in _listed("extractions", extractions)]
    cost_limits = _listed("cost_limits", cost_limits, task.cost_limits)
    entries: list[EvaluationEntry] = []
    for extraction in extractions:
        policy = PipelinePolicy(
            pipeline,
            extraction=extraction,
            num_candidates=num_candidates,
            num_inference_steps=num_inference_steps,
        )
        entries += evaluate_policy(
            policy,
            task,
            extraction=extraction,
            knows_limit=extraction == "safe",
            cost_limits=cost_limits,
            feedback=feedback,
            **settings,
        )
    return sorted(entries, key=lambda entry: entry.key)


def evaluate_policy(
    policy: Policy,
    task: str | Task,
    *,
    train_info: TrainInfo,
    extraction: str,
    knows_limit: bool,
    cost_limits: Iterable[float] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    feedback: bool = True,
    backend: str = "sync",
    simulator: str = "auto",
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> list[EvaluationEntry]:
    """Evaluate any policy at several cost limits.

    Args:
        policy: the policy.
        task: the task or its name.
        train_info: where the policy comes from.
        extraction: name of the way it picks its actions, for the entries.
        knows_limit: whether it is told the limit. Otherwise the same episodes are measured against every
            limit, and entries say `feedback=False`.
        cost_limits: as in `evaluate`.
        episodes: as in `evaluate`.
        seeds: as in `evaluate`.
        feedback: as in `evaluate`.
        backend: as in `evaluate`.
        simulator: as in `evaluate`.
        progress: as in `evaluate`.
        on_rollout: as in `evaluate`.

    Returns:
        One entry per limit, in the order of the limits.

    Raises:
        ValueError: an argument is out of its range.
        SimulatorNotInstalledError: the task's simulator is missing.
    """
    task = get_task(task)
    limits = [check_cost_limit(limit) for limit in _listed("cost_limits", cost_limits, task.cost_limits)]
    seeds = [check_seed(seed) for seed in _listed("seeds", seeds)]
    feedback = feedback and knows_limit
    versions = package_versions(task, simulator)

    def play(limit: float | None) -> list[Rollout]:
        rollouts = []
        for seed in seeds:
            played = rollout(
                policy,
                task,
                episodes=episodes,
                seed=seed,
                cost_limit=limit,
                feedback=feedback,
                backend=backend,
                simulator=simulator,
                progress=progress,
            )
            if on_rollout is not None:
                on_rollout(extraction, played)
            rollouts.append(played)
        return rollouts

    without_limit = None if knows_limit else play(None)
    entries = []
    for limit in limits:
        rollouts = play(limit) if without_limit is None else without_limit
        entries.append(
            EvaluationEntry.from_episodes(
                task,
                np.concatenate([played.returns for played in rollouts]),
                np.concatenate([played.cost_returns for played in rollouts]),
                cost_limit=limit,
                extraction=extraction,
                feedback=feedback,
                eval_seeds=seeds,
                steps_per_second=sum(int(played.lengths.sum()) for played in rollouts)
                / sum(played.seconds for played in rollouts),
                train_info=train_info,
                versions=versions,
            )
        )
    return entries


def package_versions(task: Task, simulator: str = "auto") -> dict[str, str]:
    """Versions of what an evaluation's numbers depend on; packages that are not installed are left out.

    Args:
        task: the task.
        simulator: what plays it, as in `make_vector_env`.
    """
    versions = {"python": platform.python_version(), "spi-diffusers": spi_diffusers.__version__}
    packages = (*_SIMULATOR_PACKAGES[task.simulator], *_CHOSEN_PACKAGES.get(simulator, ()))
    for name in ("torch", "diffusers", "numpy", "gymnasium", *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def is_spi(pipeline: Any) -> bool:
    """Whether a pipeline is SPI's, which can be told a limit, and not a baseline's."""
    from spi_diffusers.pipelines import SPIPolicyPipeline

    return isinstance(pipeline, SPIPolicyPipeline)


def acting(pipeline: Any, extraction: str) -> Policy:
    """A pipeline as the policy of a rollout: SPI's with a way to extract actions, a baseline's as it is."""
    return PipelinePolicy(pipeline, extraction=extraction) if is_spi(pipeline) else BaselinePolicy(pipeline)


def check_choices(pipeline: Any, extractions: Sequence[str] | None = None, *, feedback: bool = True) -> None:
    """Refuse choices of how a policy acts that have no effect.

    Args:
        pipeline: The policy.
        extractions: What was chosen; None: nothing.
        feedback: Whether the running cost is fed back, which is what is done where nothing is said.

    Raises:
        ValueError: It is a baseline, or safe extraction is not among them and is to go without feedback.
    """
    if extractions is None and feedback:
        return
    if extractions is not None and "safe" not in extractions and not feedback and is_spi(pipeline):
        raise ValueError(
            "extraction by reward is told nothing of the cost anyway: that it is not fed back has no effect"
        )
    if not is_spi(pipeline):
        raise ValueError(
            f"the policy is a baseline ({pipeline.config.algorithm}), which acts in one way: a choice of "
            "extraction or feedback has no effect on it"
        )


def policy_task(pipeline: Any, task: str | Task | None) -> Task:
    """The task to play a pipeline on: the one that is asked for, or the pipeline's own.

    Raises:
        ValueError: The pipeline was trained for another task, or none is known.
    """
    trained_for = pipeline.config.task
    if task is None:
        if not trained_for:
            raise ValueError(
                "the policy was trained on data of none of DSRL's tasks, so there is no simulator to play it "
                "in: call it in your own environment, pipe(observation, cost_limit=...), or name a task that "
                "has its observations and actions"
            )
        return get_task(trained_for)
    task = get_task(task)
    # Shapes do not tell: BallCircle and CarCircle have the same.
    if trained_for and get_task(trained_for).name != task.name:
        raise ValueError(f"the pipeline was trained for {trained_for}, it cannot be evaluated on {task.name}")
    return task


def _listed(name: str, values: Iterable | None, default: Sequence = ()) -> list:
    listed = list(default if values is None else values)
    if not listed:
        raise ValueError(f"{name} is empty: give at least one")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{name} holds the same value twice: {listed}")
    return listed
