"""Play a policy in the simulator: all episodes stepped together, one batched policy call per step."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs import make_vector_env
from spi_diffusers.envs.make import check_seed
from spi_diffusers.evaluation import BASELINE_EXTRACTION, knows_limit
from spi_diffusers.evaluation.entries import check_cost_limit
from spi_diffusers.pipelines.extraction import DEFAULT_RISK

if TYPE_CHECKING:
    import gymnasium

    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


class Policy(Protocol):
    """What a rollout asks for actions."""

    def reset(self, seed: int, cost_limit: float | None) -> None:
        """Start over: everything random in the policy follows from the seed.

        Args:
            seed: The seed.
            cost_limit: Limit that every episode is held to, or None.
        """

    def act(
        self, observation: np.ndarray, cost_budget: np.ndarray | None, steps_left: np.ndarray | None
    ) -> np.ndarray:
        """Choose one action per observation.

        Args:
            observation: (B, O) float32, in the simulator's own units.
            cost_budget: (B,) float64, cost that each episode may still cause (negative once it has caused
                too much); without `steps_left` the limit for a whole episode. None: there is no limit.
            steps_left: (B,) int64, steps until the time limit, this one included. None: the cost so far
                is not fed back.

        Returns:
            (B, A), in the range of the action space.
        """


class PipelinePolicy:
    """A pipeline as the policy of a rollout; None for sampling settings takes the pipeline's defaults.

    With extraction "safe" it is told the limit, or with feedback what is left of it, and the steps left; and
    `risk`, the share of the episodes that may exceed the limit, in (0, 1). "reward" (Eq. 12) and "policy" (a
    baseline) are told nothing. `num_candidates` is for "reward" alone.
    """

    def __init__(
        self,
        pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline",
        extraction: str = "safe",
        *,
        risk: float = DEFAULT_RISK,
        num_candidates: int | None = None,
        num_inference_steps: int | None = None,
    ) -> None:
        self.pipeline, self.extraction, self.risk = pipeline, extraction, risk
        self._sampling = {"num_candidates": num_candidates, "num_inference_steps": num_inference_steps}
        self._generator = torch.Generator()

    def reset(self, seed: int, cost_limit: float | None) -> None:
        """Seed the policy's own generator; torch's global one is never drawn from."""
        self._generator.manual_seed(seed)

    def act(
        self, observation: np.ndarray, cost_budget: np.ndarray | None, steps_left: np.ndarray | None
    ) -> np.ndarray:
        """Call the pipeline once for all observations, see `Policy.act`; ValueError: safe without a cost
        limit.
        """
        call: Any = self.pipeline
        if self.extraction == BASELINE_EXTRACTION:
            return np.asarray(call(observation, generator=self._generator))
        limits: dict[str, Any] = {}
        if knows_limit(self.extraction):
            if cost_budget is None:
                raise ValueError('extraction="safe" needs a cost limit; extraction="reward" does without one')
            limits = {"cost_limit": cost_budget}
            if steps_left is not None:
                limits = {"cost_budget": cost_budget, "steps_left": steps_left}
            limits["risk"] = self.risk
        settings = {"extraction": self.extraction, "generator": self._generator, **limits, **self._sampling}
        (actions,) = call(observation, return_dict=False, **settings)
        return np.asarray(actions)


@dataclass(frozen=True)
class Rollout:
    """B finished episodes, and how they were played.

    Attributes:
        seed: What determined them.
        cost_limit: Limit that the policy was told, or None.
        feedback: Whether it was told what is left of the limit.
        returns: (B,) float64, undiscounted sums of rewards.
        cost_returns: (B,) float64, undiscounted sums of costs.
        lengths: (B,) int64, steps until the end.
        terminated: (B,) bool, whether the task itself ended the episode (else the time limit did).
        seconds: Time of all steps, policy included, making of the environments not included.
    """

    seed: int
    cost_limit: float | None
    feedback: bool
    returns: np.ndarray
    cost_returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    seconds: float


def rollout(
    policy: Policy,
    task: str | Task,
    *,
    episodes: int,
    seed: int,
    cost_limit: float | None,
    feedback: bool = True,
    simulator: str = "auto",
    progress: bool = True,
    purpose: str = "evaluation",
) -> Rollout:
    """Play episodes to their end, told `cost_limit` (None for none), in the order of `episode_seeds(seed,
    episodes, purpose)`.

    The environments are fresh and the policy is reset, so that a rollout is a function of its arguments: the
    same seed gives the same numbers, bit for bit, on the same machine. With `feedback` the policy is told at
    every step what is left of the limit and of the episode, else the limit alone.

    ValueError: no episodes, a negative limit or seed, or actions of the wrong shape or not finite;
    SimulatorNotInstalledError: the simulator is missing.
    """
    task, episodes, seed = get_task(task), check_episodes(episodes), check_seed(seed)
    limit = None if cost_limit is None else check_cost_limit(cost_limit)
    env = make_vector_env(task, episodes, seed=seed, simulator=simulator, purpose=purpose)
    try:
        return _play(policy, task, env, seed, limit, feedback, progress)
    finally:
        env.close()


def check_episodes(episodes: Any) -> int:
    """Check the number of episodes; ValueError if it is not an integer of at least 1."""
    if isinstance(episodes, bool) or not isinstance(episodes, int | np.integer) or episodes < 1:
        raise ValueError(f"episodes must be an integer of at least 1, got {episodes!r}")
    return int(episodes)


def limits_for_step(
    cost_limit: float | None, cost_so_far: np.ndarray, step: int, max_episode_steps: int, feedback: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What a policy is told before a step: `cost_budget` and `steps_left`, as `Policy.act` takes them.

    `cost_so_far` (B,) is the cost of the `step` steps already done.
    """
    if cost_limit is None:
        return None, None
    if not feedback:
        return np.full(len(cost_so_far), cost_limit), None
    return cost_limit - cost_so_far, np.full(len(cost_so_far), max_episode_steps - step)


def check_actions(actions: np.ndarray, shape: tuple[int, ...], step: int) -> np.ndarray:
    """Check the actions; ValueError: wrong shape, or not finite."""
    actions = np.asarray(actions)
    if actions.shape != shape:
        raise ValueError(
            f"the policy gave actions of shape {actions.shape} at step {step}, expected {shape}: one row "
            "per observation, one column per action dimension"
        )
    if not np.isfinite(actions).all():
        row = int(np.flatnonzero(~np.isfinite(actions).all(axis=-1))[0])
        raise ValueError(f"the policy gave {actions[row].tolist()} for observation {row} at step {step}")
    return actions


def _play(
    policy: Policy,
    task: Task,
    env: "gymnasium.vector.VectorEnv",
    seed: int,
    cost_limit: float | None,
    feedback: bool,
    progress: bool,
) -> Rollout:
    from spi_diffusers.progress import progress_bar

    episodes = env.num_envs
    returns, cost_returns = np.zeros(episodes), np.zeros(episodes)
    lengths = np.zeros(episodes, dtype=np.int64)
    actions = np.zeros(env.action_space.shape, dtype=np.float32)
    policy.reset(seed, cost_limit)
    observation, infos = env.reset()
    start = time.perf_counter()
    with progress_bar(total=task.max_episode_steps, unit="step", disable=not progress, leave=False) as bar:
        limit = "none" if cost_limit is None else f"{cost_limit:g}"
        bar.set_description(f"{task.short_name}, {episodes} episodes, limit {limit}")
        for step in range(task.max_episode_steps):
            active = ~infos["ended"]
            told = limits_for_step(cost_limit, cost_returns[active], step, task.max_episode_steps, feedback)
            chosen = policy.act(observation[active], *told)
            actions[active] = check_actions(chosen, (int(active.sum()), *actions.shape[1:]), step)
            observation, rewards, _, _, infos = env.step(actions)
            # An episode that has ended holds with reward 0 and cost 0.
            returns += rewards
            cost_returns += infos["cost"]
            lengths += active
            bar.update()
            bar.set_postfix_str(f"mean cost {cost_returns.mean():.1f}", refresh=False)
            if infos["ended"].all():
                break
    return Rollout(
        seed=seed,
        cost_limit=cost_limit,
        feedback=feedback and cost_limit is not None,
        returns=returns,
        cost_returns=cost_returns,
        lengths=lengths,
        terminated=np.array(infos["terminated_episode"], dtype=bool),
        seconds=time.perf_counter() - start,
    )
