"""Assess a policy without a simulator, from episodes that its networks never saw.

`assess_play.py` estimates return and cost, `assess_support.py` how far actions are from the data, and
`assess_warnings.py` says where the data cannot tell.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spi_diffusers.config.validation import Count, Whole, settings
from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.holdout import held_out_episodes
from spi_diffusers.data.layout import folder_configs
from spi_diffusers.data.streaming import (
    Dataset,
    StreamedDataset,
    draw_episodes,
    load_episodes,
    open_transitions,
)
from spi_diffusers.data.tables import data_kind
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation.assess_outcome import estimates, play_on_record, residual_sums
from spi_diffusers.evaluation.assess_support import Support
from spi_diffusers.evaluation.assess_warnings import find_warnings
from spi_diffusers.evaluation.assessment import (
    ENOUGH_STARTS,
    POLICY_FIELDS,
    Assessment,
    LimitAssessment,
)
from spi_diffusers.evaluation.entries import cost_margin_of, each, one_or_all
from spi_diffusers.evaluation.evaluate import Risk, SeveralLimits, policy_task
from spi_diffusers.files import CONFIG_FILE, INFO_FILE, PolicyError, local_path
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.allowance import DEFAULT_RISK

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

#: Of the episodes at most so many transitions are used, drawn as whole episodes; and by `spi train`.
MAX_TRANSITIONS, QUICK_TRANSITIONS = 50_000, 20_000


@settings(frozen=True)
class AssessmentSpec:
    """How a policy is assessed; `assess` explains the fields. `ConfigError`: a value is out of its range."""

    cost_limits: SeveralLimits | None = None
    risk: Risk = DEFAULT_RISK
    episodes: Count | None = None
    max_transitions: Count = MAX_TRANSITIONS
    seed: Whole = 0


def assess(
    policy: "SPIPolicyPipeline | str | os.PathLike[str]",
    dataset: "Dataset | str | os.PathLike[str] | None" = None,
    *,
    cost_limits: Iterable[CostLimit] | None = None,
    risk: float = DEFAULT_RISK,
    episodes: int | None = None,
    max_transitions: int = MAX_TRANSITIONS,
    seed: int = 0,
) -> Assessment:
    """Estimate what a policy earns and costs at several limits, from data alone.

    Examples:
        >>> assessment = assess("outputs/ballcircle-seed0", cost_limits=[10, 20, 40])
        >>> print(assessment)

    Args:
        policy: An SPI pipeline with an evaluation critic, the folder of a policy or of its run, or an id on
            the Hub.
        dataset: Data to use all episodes of: loaded, or what `load_transitions` takes. None takes what the
            policy was trained on. Of the data that it was trained on, by its checksum, only the episodes are
            used that training held out, if there are any.
        cost_limits: Limits per episode; of several costs each is a tuple. None takes the task's; without a
            task, or of several costs, the quartiles of what the data's episodes cost, rounded to two digits.
        risk: Share of the episodes that may exceed the limit, in (0, 1).
        episodes: Use so many episodes at most, drawn by the seed; None: all.
        max_transitions: Use so many of their transitions at most, but at least one episode.
        seed: Decides all randomness.

    Returns:
        The estimates, with warnings where the data cannot tell.

    Raises:
        ValueError: An argument is out of its range, the policy has no evaluation critic, or the data is of
            another task, has observations or actions of other sizes, or was not named and is no longer what
            the policy was trained on.
        DatasetError: The data cannot be loaded.
        FileNotFoundError: There is no such policy.
    """
    how: dict[str, Any] = {"cost_limits": cost_limits, "risk": risk, "episodes": episodes}
    spec = AssessmentSpec(**how, max_transitions=max_transitions, seed=seed)
    pipeline: Any = policy
    if isinstance(policy, str | os.PathLike):
        from spi_diffusers.pipelines.loading import load_pipeline

        pipeline = load_pipeline(policy)
    if getattr(pipeline, "evaluation_critic", None) is None:
        raise PolicyError(
            f"a {type(pipeline).__name__} without an evaluation critic cannot be assessed: nothing tells "
            "what it will cost. SPI trains one with spi.conditioned=true"
        )
    data = find_data(pipeline, dataset)
    check_fit(pipeline, data)
    return _assess(pipeline, data, spec)


@own_numerics()
@torch.no_grad()
def _assess(
    pipeline: "SPIPolicyPipeline",
    data: Dataset,
    spec: AssessmentSpec,
) -> Assessment:
    seed, most_transitions = spec.seed, spec.max_transitions
    rng = np.random.default_rng(seed)
    is_training_data = _trained_on(pipeline) == data.sha256
    held_out = _held_out(pipeline, data) if is_training_data else np.zeros(data.num_episodes, dtype=bool)
    pool = np.flatnonzero(held_out) if held_out.any() else np.arange(data.num_episodes)
    chosen = draw_episodes(data, pool, most_transitions, rng, spec.episodes)
    used = load_episodes(data, chosen)
    limits = spec.cost_limits or _usual_limits(pipeline, data)
    plays = [play_on_record(pipeline, used, limit, spec.risk, seed) for limit in limits]
    residuals = residual_sums(pipeline, used, [play.weight for play in plays])
    rest = np.setdiff1d(np.arange(data.num_episodes), pool if held_out.any() else chosen.numpy())
    most_states = max(most_transitions // 25, 100)
    if len(rest):
        others = load_episodes(data, draw_episodes(data, rest, most_transitions, rng))
        support: Support | None = Support.between(pipeline, others, used, most_states, rng)
    else:
        support = Support.within(pipeline, used, most_states, rng)
    rows = []
    for limit, play, residual in zip(limits, plays, residuals, strict=True):
        return_, costs = estimates(play, residual, seed)
        share = None if support is None else support.share_outside(pipeline, play.weight)
        rows.append(LimitAssessment(limit, return_, one_or_all(costs), float(play.feasible.mean()), share))
    order = np.sort(plays[0].least_bound, axis=0)
    place = min(int(np.ceil(ENOUGH_STARTS * len(order))), len(order)) - 1
    info = None
    if pipeline.training_record is not None and pipeline.is_as_trained:
        info = {name: pipeline.training_record["info"].get(name) for name in POLICY_FIELDS}
    return Assessment(
        policy=info,
        dataset={"id": data.source, "sha256": data.sha256},
        held_out=bool(held_out.any()),
        episodes=used.num_episodes,
        transitions=len(used),
        risk=spec.risk,
        limits=tuple(rows),
        smallest_limit=one_or_all(order[place].tolist()),
        warnings=tuple(
            find_warnings(
                rows,
                data.episodes.cost_returns.cpu().numpy(),
                least_expected=plays[0].least_expected,
                used=used.num_episodes,
                seen_in_training=is_training_data and not held_out.any(),
                cost_names=pipeline.cost_names,
            )
        ),
        cost_margin=cost_margin_of(pipeline.config),
        cost_names=pipeline.cost_names if len(pipeline.cost_names) > 1 else (),
    )


# ---- the data


def find_data(pipeline: Any, dataset: Any) -> Dataset:
    """The data that is named, or what the policy was trained on."""
    if isinstance(dataset, TransitionDataset | StreamedDataset):
        return dataset
    record = pipeline.training_record
    config = {} if record is None else record["config"]
    task, name = pipeline.config.task, config.get("task")
    clip = bool(config.get("clip_actions"))
    if dataset is not None:
        if task is None and data_kind(dataset) == "folder" and name in folder_configs(local_path(dataset)):
            task = name  # other data may be called otherwise
        return open_transitions(dataset, task, clip_actions=clip)
    if record is None:
        raise PolicyError(
            f"the policy has no {CONFIG_FILE} and no {INFO_FILE}, which tell what it was trained on: name "
            "the data (dataset=, --dataset)"
        )
    how: dict[str, Any] = {"revision": config.get("revision"), "clip_actions": clip}
    data = open_transitions(config.get("dataset"), task or name, **how)
    if _trained_on(pipeline) != data.sha256:
        raise PolicyError(
            f"{data.source}: by its checksum, this is not what the policy was trained on; name the data "
            "(dataset=, --dataset)"
        )
    return data


def check_fit(pipeline: Any, data: Dataset) -> None:
    """Refuse data of another task, or of other sizes."""
    if data.task is not None:
        policy_task(pipeline, data.task)
    network = pipeline.noise_model.config
    if len(pipeline.cost_names) != len(data.cost_names):
        raise ValueError(
            f"{data.source}: has the cost(s) {', '.join(data.cost_names)}, but the policy's are "
            f"{', '.join(pipeline.cost_names)}"
        )
    for name in ("observation_dim", "action_dim"):
        ours, theirs = getattr(network, name), getattr(data, name)
        if ours != theirs:
            raise ValueError(
                f"{data.source}: has {name.removesuffix('_dim')}s of {theirs} numbers, but the policy's have "
                f"{ours}"
            )


def _trained_on(pipeline: Any) -> str | None:
    """Checksum of the data that a policy was trained on, where that is known."""
    source = ((pipeline.training_record or {}).get("info") or {}).get("dataset")
    return source.get("sha256") if isinstance(source, dict) else None


def _held_out(pipeline: Any, data: Dataset) -> np.ndarray:
    """Which episodes of its data a policy's training held out, (E,) bool."""
    config = pipeline.training_record["config"]
    share, seed = config.get("holdout", 0.0), config.get("seed", 0)
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise PolicyError(f"{CONFIG_FILE}: holdout must be a number in [0, 1), got {share!r:.200}")
    return held_out_episodes(data.num_episodes, seed, share).numpy()


def _usual_limits(pipeline: Any, data: Dataset) -> tuple[CostLimit, ...]:
    task = data.task or TASKS.get(pipeline.config.task or "")
    limits = data.episodes.usual_cost_limits(task)
    if task is not None and len(data.cost_names) == 1:
        return limits
    rounded = ([float(f"{number:.2g}") for number in each(limit)] for limit in limits)
    return tuple(dict.fromkeys(one_or_all(numbers) for numbers in rounded))
