"""Play a policy at several cost limits.

Evaluation reads a finished policy. Nothing of what it measures may go back into training.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from spi_diffusers.config.validation import Count, Flag, Whole, listed, settings
from spi_diffusers.data.costs import COST, CostLimit
from spi_diffusers.data.simulators import SIMULATORS, package_versions
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation import BASELINE_EXTRACTION, LIMIT_EXTRACTION, knows_limit
from spi_diffusers.evaluation.entries import EvaluationEntry, PerCost, TrainInfo, cost_margin_of, each
from spi_diffusers.evaluation.results import Results
from spi_diffusers.evaluation.rollouts import PipelinePolicy, Policy, Rollout, rollout
from spi_diffusers.files import (
    INFO_FILE,
    PolicyError,
)
from spi_diffusers.messages import shown, shown_limit
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.allowance import DEFAULT_RISK, check_risk

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

logger = logging.getLogger(__name__)

#: Called after each rollout with the name of the extraction and the episodes.
RolloutCallback = Callable[[str, Rollout], None]

_PACKAGES = ("torch", "diffusers", "numpy", "gymnasium")
#: What a simulator plays with besides the modules that it needs: a task's own one, or a chosen one.
_ALSO = {"safety_gymnasium": ("safety-gymnasium", "mujoco"), "dsrl": ("dsrl", "safety-gymnasium")}


def _distinct(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{info.field_name} holds the same value twice: {shown(list(values))}")
    return values


_CHECKS = (Field(min_length=1), BeforeValidator(listed), AfterValidator(_distinct))
SeveralLimits = Annotated[tuple[PerCost, ...], *_CHECKS]
SeveralSeeds = Annotated[tuple[Whole, ...], *_CHECKS]
Risk = Annotated[float, BeforeValidator(check_risk)]
SeveralExtractions = Annotated[tuple[Literal["safe", "reward", "fast", "policy", "limit"], ...], *_CHECKS]


@settings(frozen=True)
class EvaluationSpec:
    """How a policy is played; `evaluate` explains the fields. `ConfigError`: a value is out of its range."""

    cost_limits: SeveralLimits | None = None
    episodes: Count = 20
    seeds: SeveralSeeds = (0,)
    extractions: SeveralExtractions | None = None
    feedback: Flag = True
    risk: Risk = DEFAULT_RISK
    simulator: Literal["auto", "bullet", "gymnasium", "safety_gymnasium", "dsrl"] = "auto"
    num_candidates: Count | None = None
    num_inference_steps: Count | None = None

    def ways(self, pipeline: Any) -> tuple[str, ...]:
        """The extractions to play a policy with; ValueError: a choice has no effect on this policy."""
        known: tuple[str, ...] | None = getattr(pipeline, "extractions", None)
        if known is None:  # what diffusers loads with trust_remote_code
            raise PolicyError(
                f"{type(pipeline).__module__}.{type(pipeline).__name__} is no policy with a training record: "
                "give a folder, an id on the Hub, or what SPIPolicyPipeline.from_pretrained loads"
            )
        # The student, the third, plays where it is asked for: it does what its teacher does.
        chosen = self.extractions or known[:2]
        sampling = (self.num_candidates, self.num_inference_steps)
        is_baseline = known in ((BASELINE_EXTRACTION,), (LIMIT_EXTRACTION,))
        told = any(map(knows_limit, chosen))
        without_effect = self.risk != DEFAULT_RISK or any(sampling) or not (self.feedback or told)
        if is_baseline and (chosen != known or without_effect):
            choices = "extraction, risk or sampling" if told else "extraction, feedback, risk or sampling"
            raise ValueError(
                f"the policy is a baseline ({pipeline.config.algorithm}), which acts in one way: a "
                f"choice of {choices} has no effect on it"
            )
        if wrong := [name for name in chosen if name not in known]:
            raise ValueError(f"this policy has no extraction {wrong[0]!r}, only {' and '.join(known)}")
        for name, is_usual in (("feedback", self.feedback), ("risk", self.risk == DEFAULT_RISK)):
            if not (is_usual or is_baseline or told):
                choice = f"{name}={getattr(self, name)}"
                raise ValueError(f"{choice} has no effect: extraction {chosen[0]!r} ignores the cost")
        if self.num_candidates is not None and all(map(knows_limit, chosen)):
            raise ValueError(
                f"num_candidates={self.num_candidates} has no effect: extraction {chosen[0]!r} has one "
                "candidate for each safety weight"
            )
        return chosen

    def acting(self, pipeline: Any, extraction: str) -> PipelinePolicy:
        """A pipeline as the policy of a rollout."""
        return PipelinePolicy(
            pipeline,
            extraction,
            risk=self.risk,
            num_candidates=None if knows_limit(extraction) else self.num_candidates,
            num_inference_steps=self.num_inference_steps,
        )


def evaluate(
    policy: "SPIPolicyPipeline | BaselinePolicyPipeline | str | os.PathLike[str]",
    task: str | Task | None = None,
    *,
    cost_limits: Iterable[CostLimit] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    extractions: Iterable[str] | None = None,
    feedback: bool = True,
    risk: float = DEFAULT_RISK,
    simulator: str = "auto",
    num_candidates: int | None = None,
    num_inference_steps: int | None = None,
    algorithm: str | None = None,
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> Results:
    """Play a policy in its simulator at several cost limits.

    All arguments are checked before the first episode is played.

    Examples:
        >>> results = evaluate("outputs/ballcircle-seed0", cost_limits=[10, 20, 40], episodes=20)
        >>> print(results)

    Args:
        policy: A pipeline, the folder of a policy or of its run, or an id on the Hub. A baseline is played
            once and measured against every limit.
        task: The task or its name; None takes the policy's own.
        cost_limits: Limits per episode; None takes the task's defaults, for a baseline the one that it was
            trained for. Of a policy of several costs each is a tuple, a number for each cost.
        episodes: Episodes per limit and evaluation seed; 20 is DSRL's protocol.
        seeds: Evaluation seeds; an entry takes the episodes of all of them together.
        extractions: "safe" and / or "reward" (the paper's Eq. 12, which is played once for all limits,
            because it knows none); None takes both. "fast" is "safe" by the policy's student.
            A baseline acts in one way, called "policy", or "limit" if it is told the limit when it acts.
        feedback: Where it is told the limit, tell the policy at every step what is left of the limit.
        risk: With safe extraction, the share of the episodes that may exceed the limit, in (0, 1).
        simulator: What plays the task, as `simulator` of `make_env`.
        num_candidates: Candidates per observation, of extraction "reward"; None takes the policy's default.
        num_inference_steps: Denoising steps; None takes the policy's default.
        algorithm: What results call the algorithm; None takes the name in the policy's `training_record`.
            Without a record, or if the weights were changed since, results say that the training is unknown.
        progress: Show progress bars.
        on_rollout: Gets the name of the extraction and the episodes of every rollout.

    Returns:
        One entry per extraction and limit, in the order in which they were asked for, "safe" first.

    Raises:
        ValueError: The policy was trained for another task, or an argument is out of its range.
        FileNotFoundError: There is no such policy.
        SimulatorNotInstalledError: The task's simulator is missing.
    """
    how: dict[str, Any] = {"cost_limits": cost_limits, "episodes": episodes, "seeds": seeds}
    how |= {"extractions": extractions, "feedback": feedback, "risk": risk, "simulator": simulator}
    spec = EvaluationSpec(**how, num_candidates=num_candidates, num_inference_steps=num_inference_steps)
    if isinstance(policy, str | os.PathLike):
        from spi_diffusers.pipelines.loading import load_pipeline

        policy = load_pipeline(policy)
    spec.ways(policy)
    known = policy_task(policy, task)
    info = training_of(policy)
    if info is None:
        logger.warning("The policy has no record of its training: its results say that it is unknown.")
        name = policy.config.get("algorithm") or "unknown"
        nothing = {"id": "unknown", "sha256": "unknown"}
        info = TrainInfo(name, 0, 0, 0.0, nothing, cost_margin_of(policy.config))
    if algorithm is not None:
        info = replace(info, algorithm=algorithm)
    return evaluate_pipeline(policy, known, spec, info, progress, on_rollout)


@own_numerics()
def evaluate_pipeline(
    pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline",
    task: Task,
    spec: EvaluationSpec,
    train_info: TrainInfo,
    progress: bool,
    on_rollout: RolloutCallback | None = None,
) -> Results:
    """Play a pipeline as `spec` says; `evaluate` explains the rest."""
    entries: list[EvaluationEntry] = []
    ways = spec.ways(pipeline)
    usual = task.cost_limits if pipeline.default_limit is None else (pipeline.default_limit,)
    spec = replace(spec, cost_limits=limits_for(pipeline, spec.cost_limits, usual))
    for extraction in ways:
        policy = spec.acting(pipeline, extraction)
        entries += evaluate_policy(
            policy, task, spec, extraction, train_info, progress, on_rollout, costs=costs_of(pipeline)
        )
    return Results(entries)


def evaluate_policy(
    policy: Policy,
    task: Task,
    spec: EvaluationSpec,
    extraction: str,
    train_info: TrainInfo,
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
    costs: Sequence[str] = ("cost",),
) -> list[EvaluationEntry]:
    """Play any policy at several cost limits; one entry per limit, in the order of the limits.

    `extraction` names its way of acting. Where it `knows_limit`, the policy is told it; with others the same
    episodes are measured against every limit, and entries say `feedback=False`. A baseline has no risk.
    """
    told = knows_limit(extraction)
    feedback = spec.feedback and told
    versions = simulator_versions(task, spec.simulator)

    def play(limit: CostLimit | None) -> list[Rollout]:
        how: dict[str, Any] = {"episodes": spec.episodes, "cost_limit": limit, "feedback": feedback}
        how |= {"simulator": spec.simulator, "progress": progress, "costs": costs}
        rollouts = []
        for seed in spec.seeds:
            rollouts.append(rollout(policy, task, seed=seed, **how))
            if on_rollout is not None:
                on_rollout(extraction, rollouts[-1])
        return rollouts

    without_limit = None if told else play(None)
    entries = []
    for limit in spec.cost_limits or task.cost_limits:
        rollouts = play(limit) if without_limit is None else without_limit
        steps, seconds = (sum(values) for values in zip(*map(_speed, rollouts), strict=True))
        entries.append(
            EvaluationEntry.from_episodes(
                task,
                np.concatenate([played.returns for played in rollouts]),
                np.concatenate([played.cost_returns for played in rollouts]),
                cost_limit=limit,
                train_info=train_info,
                extraction=extraction,
                feedback=feedback,
                eval_seeds=spec.seeds,
                steps_per_second=steps / seconds,
                versions=versions,
                risk=spec.risk if told and extraction != LIMIT_EXTRACTION else None,
                cost_names=tuple(costs) if len(costs) > 1 else (),
            )
        )
    return entries


def costs_of(pipeline: Any) -> tuple[str, ...]:
    """Names of the costs that a policy keeps a limit of; a baseline has one."""
    return getattr(pipeline, "cost_names", (COST,))


def limits_for(
    pipeline: Any, limits: Sequence[CostLimit] | None, usual: Sequence[float]
) -> tuple[CostLimit, ...]:
    """The limits to play a policy at, by default the usual ones of one cost.

    ValueError: a limit is not for so many costs, or the policy has several costs and none is given.
    """
    names = costs_of(pipeline)
    if limits is None and len(names) == 1:
        return tuple(usual)
    wrong = [limit for limit in limits or () if len(each(limit)) != len(names)]
    if limits is None or wrong:
        got = "" if limits is None else f", got {shown_limit(wrong[0])}"
        raise ValueError(
            f"the policy has the cost{'s' * (len(names) > 1)} {', '.join(names)}: a cost limit needs "
            f"{len(names)} number(s), such as {','.join(['20'] * len(names))}{got}"
        )
    return tuple(limits)


def simulator_versions(task: Task, simulator: str = "auto") -> dict[str, str]:
    """Versions of what the numbers of a rollout depend on, by package."""
    also = (*_ALSO.get(task.simulator, ()), *_ALSO.get(simulator, ()))
    return package_versions(*_PACKAGES, *SIMULATORS[task.simulator].packages, *also)


def _speed(played: Rollout) -> tuple[int, float]:
    return int(played.lengths.sum()), played.seconds


def training_of(pipeline: Any) -> TrainInfo | None:
    """Where a pipeline's weights come from; None without a record, or if it was changed since."""
    if pipeline.training_record is None or not pipeline.is_as_trained:
        return None
    recorded = pipeline.training_record["info"]
    try:
        return TrainInfo.from_dict({**recorded, "cost_margin": cost_margin_of(pipeline.config)})
    except ValueError as error:
        raise ValueError(f"the policy's {INFO_FILE}: {error}") from error


def policy_task(pipeline: Any, task: str | Task | None) -> Task:
    """The task to play a pipeline on: the one that is asked for, or the pipeline's own.

    ValueError: the pipeline was trained for another task, or none is known.
    """
    trained_for = pipeline.config.task
    if task is None:
        if not trained_for:
            raise ValueError(
                "the policy was trained on data without a DSRL task, so there is no simulator to play it in: "
                "call it in your own environment, pipe(observation, cost_limit=...), or name a task that has "
                "its observations and actions"
            )
        return get_task(trained_for)
    task = get_task(task)
    # Shapes do not tell: BallCircle and CarCircle have the same.
    if trained_for and get_task(trained_for).name != task.name:
        raise ValueError(f"the pipeline was trained for {trained_for}, it cannot be evaluated on {task.name}")
    return task
