"""Certify a policy: show by episodes that nothing was chosen on what its episodes cost."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.config.validation import Count, Flag, ShareBetween, Whole, settings
from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation.bounds import fewest_episodes, least_careful, share_bound
from spi_diffusers.evaluation.certificate import SIMULATOR, Certificate, LimitCertificate, weights_sha256
from spi_diffusers.evaluation.entries import each, one_or_all
from spi_diffusers.evaluation.evaluate import Risk, SeveralLimits, limits_for, simulator_versions
from spi_diffusers.evaluation.logged_costs import read_logged_costs
from spi_diffusers.evaluation.rollouts import PipelinePolicy, Rollout, rollout
from spi_diffusers.files import (
    CERTIFICATE_FILE,
    CHECKSUMS,
    INDEX_FILE,
    PolicyError,
    find_policy_folder,
    local_path,
    replace_file,
    sha256_of,
)
from spi_diffusers.locks import held
from spi_diffusers.messages import shown_limit
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.allowance import DEFAULT_RISK

#: Episodes per limit, unless told otherwise.
EPISODES = 100
#: Values of `cost_margin` that tuning tries, from the most to the least careful.
MARGINS = tuple(round(2 ** (power / 2), 3) for power in range(6, -5, -1))


@settings(frozen=True)
class CertificationSpec:
    """How a policy is certified; `certify` explains the fields. `ConfigError`: a value is out of range."""

    cost_limits: SeveralLimits | None = None
    episodes: Count | None = None
    confidence: ShareBetween = 0.95
    risk: Risk = DEFAULT_RISK
    tune: Flag = False
    seed: Whole = 0


def certify(
    policy: str | os.PathLike[str],
    *,
    cost_limits: Iterable[CostLimit] | None = None,
    episodes: int | None = None,
    confidence: float = 0.95,
    risk: float = DEFAULT_RISK,
    episodes_file: str | os.PathLike[str] | None = None,
    tune: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Certificate:
    """Certify a policy at several limits, and write `certificate.json` into its folder.

    Examples:
        >>> certificate = certify("outputs/ballcircle-seed0", cost_limits=[10, 20, 40], episodes=200)
        >>> print(certificate)

    Args:
        policy: Folder of an SPI policy with an evaluation critic, or of its run.
        cost_limits: Limits per episode. None takes the task's, or those in the file. Of a policy of several
            costs each is a tuple, a number for each cost; such a policy is played.
        episodes: Episodes per limit; 100 by default. Only where they are played.
        confidence: With which each bound holds by itself, in (0, 1).
        risk: Share of the episodes that the policy is told, or in the file was told, may exceed the limit; in
            (0, 1).
        episodes_file: Episodes that were played elsewhere, as `read_logged_costs` reads them. None plays the
            policy in its simulator, with the running cost fed back.
        tune: Choose the policy's `cost_margin` first, on other seeds: the smallest of `MARGINS` for which it
            is shown, by fixed-sequence testing, that at every limit the share over it is at most `risk`. It
            is written into the policy's folder.
        seed: Which of the seeds that are reserved for tuning and for certification are taken.
        progress: Show progress bars.

    Returns:
        The certificate, of the weights and of the margin that the folder then has.

    Raises:
        ValueError: An argument is out of its range, the arguments do not go together, the file cannot be
            used, the policy has no evaluation critic, no checksums or no simulator, or no margin keeps the
            limits.
        FileNotFoundError: There is no such policy, or no such file.
        FolderInUseError: Another run works in the policy's folder.
        SimulatorNotInstalledError: The simulator is missing.
        OSError: The certificate cannot be written.
    """
    how: dict[str, Any] = {"cost_limits": cost_limits, "episodes": episodes, "confidence": confidence}
    spec = CertificationSpec(**how, risk=risk, tune=tune, seed=seed)
    file = None if episodes_file is None else local_path(episodes_file)
    _check_together(spec, file)
    folder = find_policy_folder(policy)
    with held(folder, "certification"):
        return _certify(folder, spec, file, progress)


@own_numerics()
def _certify(
    folder: Path,
    spec: CertificationSpec,
    file: Path | None,
    progress: bool,
) -> Certificate:
    from spi_diffusers.pipelines.loading import load_pipeline

    pipeline: Any = load_pipeline(folder)
    weights = _weights(folder)
    if getattr(pipeline, "evaluation_critic", None) is None:
        raise PolicyError(
            f"{folder}: a {type(pipeline).__name__} without an evaluation critic takes no limit at run time, "
            "and cannot be certified. SPI trains one with spi.conditioned=true"
        )
    task = get_task(pipeline.config.task) if pipeline.config.task else None
    info = {} if pipeline.training_record is None else pipeline.training_record["info"]
    played: list[tuple[CostLimit, np.ndarray, np.ndarray | None]]
    if file is not None:
        logged = _logged(file, spec, pipeline)
        played = [(limit, costs, None) for limit, costs in logged.items()]
    else:
        if task is None:
            raise PolicyError(
                f"{folder}: the policy was trained on data without a DSRL task, so there is no simulator to "
                "play it in: log its episodes elsewhere, and name the file (episodes_file=, --episodes-file)"
            )
        spec = replace(spec, cost_limits=limits_for(pipeline, spec.cost_limits, task.cost_limits))
        if spec.tune:
            _tune(folder, pipeline, task, spec, progress)
        rollouts = _play(pipeline, task, spec, "certification", progress)
        played = [(limit, one.cost_returns, one.returns) for limit, one in rollouts]
    critic = pipeline.evaluation_critic.config
    highest = one_or_all(critic.max_episode_steps * high for high in each(critic.cost_high))
    certificate = Certificate(
        weights_sha256=weights,
        cost_margin=pipeline.config.cost_margin,
        algorithm=info.get("algorithm"),
        train_seed=info.get("train_seed"),
        task=None if task is None else task.name,
        source=SIMULATOR if file is None else file.name,
        source_sha256=None if file is None else sha256_of(file),
        seed=spec.seed if file is None else None,
        confidence=spec.confidence,
        risk=spec.risk,
        highest_cost=highest,
        limits=tuple(
            LimitCertificate.from_episodes(limit, costs, returns, highest=highest, confidence=spec.confidence)
            for limit, costs, returns in played
        ),
        versions=simulator_versions(task) if file is None and task is not None else {},
        tuned_on=(spec.episodes or EPISODES) if spec.tune else None,
        cost_names=pipeline.cost_names if len(pipeline.cost_names) > 1 else (),
    )
    if _weights(folder) != weights:
        raise PolicyError(f"{folder}: another policy was saved there meanwhile; certify that one")
    if spec.tune:  # only now: nothing has changed where the work was stopped
        write_cost_margin(folder, pipeline.config.cost_margin)
    certificate.save(folder / CERTIFICATE_FILE)
    return certificate


# ---- before anything is played


def _check_together(spec: CertificationSpec, file: Path | None) -> None:
    """Refuse arguments that contradict each other, and tuning that cannot succeed."""
    if file is not None:
        for name, value in (("tune", spec.tune), ("episodes", spec.episodes is not None)):
            if value:
                raise ValueError(
                    f"{name} (--{name}) does not go with a file of episodes, which were played before: leave "
                    "one out"
                )
    least, count = fewest_episodes(spec.risk, spec.confidence), spec.episodes or EPISODES
    if spec.tune and count < least:
        raise ValueError(
            f"episodes must be at least {least} to tune at a risk of {spec.risk:g}, got {count}: fewer "
            f"cannot show it with {spec.confidence:g} confidence, even if none exceeds the limit"
        )


def _logged(file: Path, spec: CertificationSpec, pipeline: Any) -> dict[CostLimit, np.ndarray]:
    """The costs in a file, by limit, in the order in which the limits were asked for."""
    limits_for(pipeline, spec.cost_limits, ())  # refuses those of another number of costs
    found = read_logged_costs(file, pipeline.cost_names)
    if None in found:
        if spec.cost_limits is None or len(spec.cost_limits) > 1:
            raise ValueError(
                f"{file}: has no column 'limit', so its episodes were told the same one: name that one "
                "(cost_limits=, --cost-limit)"
            )
        return {spec.cost_limits[0]: found[None]}
    limits: Any = spec.cost_limits or sorted(limit for limit in found if limit is not None)
    if missing := [shown_limit(limit) for limit in limits if limit not in found]:
        there = ", ".join(f"{limit:g}" for limit in found)
        raise ValueError(f"{file}: holds no episode with a limit of {missing[0]}, only of {there}")
    return {limit: found[limit] for limit in limits}


def _weights(folder: Path) -> str:
    from spi_diffusers.pipelines.component_configs import read_config

    found = weights_sha256(read_config(folder / INDEX_FILE))
    if found is None:
        raise PolicyError(
            f"{folder / INDEX_FILE}: has no checksums, so nothing would tell which weights a certificate is "
            "of: load the policy, and save it again"
        )
    return found


# ---- in the simulator


def _play(
    pipeline: Any, task: Task, spec: CertificationSpec, purpose: str, progress: bool
) -> Iterable[tuple[CostLimit, Rollout]]:
    """Episodes at each limit, one after another; one batch each."""
    policy = PipelinePolicy(pipeline, "safe", risk=spec.risk)
    how: dict[str, Any] = {"episodes": spec.episodes or EPISODES, "seed": spec.seed, "purpose": purpose}
    how |= {"costs": pipeline.cost_names}
    for limit in spec.cost_limits or task.cost_limits:
        yield limit, rollout(policy, task, cost_limit=limit, progress=progress, **how)


def _tune(folder: Path, pipeline: Any, task: Task, spec: CertificationSpec, progress: bool) -> None:
    """Give the pipeline the smallest margin that is shown to keep the limits.

    A margin passes only if every limit does, each with the whole confidence: that one passes which exceeds
    the risk at some limit has no larger probability then (an intersection-union test).
    """
    failed: list[str] = []

    def holds(margin: float) -> bool:
        pipeline.register_to_config(cost_margin=margin)
        for limit, one in _play(pipeline, task, spec, "tuning", progress):
            costs = one.cost_returns.reshape(len(one.returns), -1)
            over = int((costs > np.array(limit)).any(axis=1).sum())
            bound = share_bound(over, len(costs), spec.confidence)
            if bound > spec.risk:
                failed.append(f"{over} of {len(costs)} episodes exceed a limit of {shown_limit(limit)}")
                return False
        return True

    margin = least_careful(MARGINS, holds)
    if margin is None:
        raise PolicyError(
            f"{folder}: not even a cost_margin of {MARGINS[0]:g} is shown to keep the limits at a risk of "
            f"{spec.risk:g}: {failed[0]}. Nothing was changed; allow more risk, leave out the limit, or play "
            "more episodes"
        )
    pipeline.register_to_config(cost_margin=margin)


def write_cost_margin(folder: Path, margin: float) -> None:
    """Change the `cost_margin` of a saved policy, complete or not at all; all else stays."""
    from spi_diffusers.pipelines.component_configs import read_config
    from spi_diffusers.pipelines.saving import sealed

    index = read_config(folder / INDEX_FILE)
    replace_file(folder / INDEX_FILE, sealed({**index, "cost_margin": margin}, index[CHECKSUMS]))
