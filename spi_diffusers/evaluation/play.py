"""One episode of a policy, recorded, as `spi play` runs it."""

from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.evaluation.evaluate import acting, check_choices, policy_task
from spi_diffusers.evaluation.loading import load_pipeline, short_name
from spi_diffusers.evaluation.video import Replay, record_replay


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode and its figures.

    Attributes:
        task: DSRL's task name.
        cost_limit: Limit it was held to.
        replay: The video, return and cost return.
        normalized_reward: The return in DSRL's scale.
        normalized_cost: The cost return over the limit.
    """

    task: str
    cost_limit: float
    replay: Replay
    normalized_reward: float
    normalized_cost: float


def play_episode(
    policy: str | Path,
    task: str | None = None,
    *,
    cost_limit: float | None = None,
    seed: int = 0,
    extraction: str | None = None,
    feedback: bool = True,
    revision: str | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> PlayedEpisode:
    """Play one episode in the simulator and record it.

    Args:
        policy: Folder or id on the Hub, as in `load_pipeline`.
        task: The task; None takes the policy's own.
        cost_limit: Limit of the episode; None takes the one that a baseline was trained for, or the
            task's first.
        seed: Decides the episode and the policy's randomness.
        extraction: "safe", or "reward" (Eq. 12), for which the limit is drawn only; None takes "safe". A
            baseline acts in one way only.
        feedback: Tell the policy at every step what is left of the limit.
        revision: Branch, tag or commit on the Hub.
        output: The video, an .mp4 file; None makes one in `outputs/play`.
        progress: Show a progress bar.

    Raises:
        ValueError: The policy, the task or an argument cannot be used.
        SimulatorNotInstalledError: The simulator is missing.
        OSError: The video cannot be written.
    """
    pipeline = load_pipeline(policy, revision=revision)
    known = policy_task(pipeline, task)
    check_choices(pipeline, None if extraction is None else [extraction], feedback=feedback)
    if cost_limit is None:  # a baseline has a limit of its own
        cost_limit = pipeline.config.get("cost_limit")
    limit = float(known.cost_limits[0] if cost_limit is None else cost_limit)
    how = ("" if extraction != "reward" else "-reward") + ("" if feedback else "-no-feedback")
    name = f"{short_name(policy)}-limit{limit:g}-seed{seed}{how}.mp4"
    default = Path("outputs") / "play" / name
    replay = record_replay(
        acting(pipeline, extraction or "safe"),
        known,
        output or default,
        cost_limit=limit,
        seed=seed,
        feedback=feedback,
        progress=progress,
    )
    return PlayedEpisode(
        known.name,
        limit,
        replay,
        known.normalize_reward(replay.return_),
        known.normalize_cost(replay.cost_return, limit),
    )
