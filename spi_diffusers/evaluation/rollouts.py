"""Play a policy in the simulator: all episodes stepped together, one batched policy call per step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs import make_vector_env
from spi_diffusers.envs.make import check_seed, episode_seeds
from spi_diffusers.evaluation import BASELINE_EXTRACTION, FAST, LIMIT_EXTRACTION, knows_limit
from spi_diffusers.evaluation.entries import check_cost_limit
from spi_diffusers.messages import shown_limit
from spi_diffusers.pipelines.allowance import DEFAULT_RISK
from spi_diffusers.pipelines.controller import SafeController

if TYPE_CHECKING:
    import gymnasium

    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
    from spi_diffusers.pipelines.target_controller import TargetController


#: Episodes that are played side by side at most: a simulator takes up to 100 MB of memory.
SIDE_BY_SIDE = 50


class Policy(Protocol):
    """What a rollout asks for actions."""

    def reset(
        self,
        seed: int,
        cost_limit: CostLimit | None,
        *,
        episodes: int,
        max_episode_steps: int,
        feedback: bool,
    ) -> None:
        """Start over: everything random in the policy follows from the seed.

        Args:
            seed: The seed.
            cost_limit: Limit that every episode is held to, or None.
            episodes: Number B of episodes that are played side by side.
            max_episode_steps: Steps of an episode, at most.
            feedback: Whether `observe` will say what steps cost.
        """

    def act(self, observation: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Choose actions.

        Args:
            observation: (B, O) float32, in the simulator's own units.
            active: (B,) bool, which episodes have not ended.

        Returns:
            One action for each of these, in the range of the action space.
        """

    def observe(self, reward: np.ndarray, cost: np.ndarray | None, ended: np.ndarray) -> None:
        """Take note of a step.

        Args:
            reward: (B,) float64, what it earned.
            cost: (B,) float64, what it cost, of several costs (B, K); None without feedback.
            ended: (B,) bool, which episodes have ended by now.
        """


class PipelinePolicy:
    """A pipeline as the policy of a rollout; None for sampling settings takes the pipeline's defaults.

    With extraction "safe", or "fast" by the policy's student, a controller that does not adapt acts: every
    episode is a draw of the same policy.
    Without feedback the pipeline is told the limit alone. `risk` is the share of the episodes that may exceed
    it, in (0, 1). "reward" (Eq. 12) and "policy" (a baseline) are told nothing. With "limit" the policy's own
    controller acts, which without feedback is told the limit and rewards. `num_candidates` is for
    "reward" alone.
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
        self._limits: dict[str, Any] = {}
        self._controller: SafeController | TargetController | None = None

    def reset(
        self,
        seed: int,
        cost_limit: CostLimit | None,
        *,
        episodes: int,
        max_episode_steps: int,
        feedback: bool,
    ) -> None:
        """Seed the policy's own generator; torch's global one is never drawn from. See `Policy.reset`;
        ValueError: safe without a cost limit.
        """
        self._generator.manual_seed(seed)
        self._limits, self._controller = {}, None
        if not knows_limit(self.extraction):
            return
        if cost_limit is None:
            raise ValueError(f'extraction="{self.extraction}" needs a cost limit; "reward" does without one')
        if self.extraction == LIMIT_EXTRACTION:
            told: Any = self.pipeline
            self._controller = told.controller(cost_limit, num_envs=episodes)
            self._controller.reset()
            return
        if not feedback:
            self._limits = {"cost_limit": cost_limit, "risk": self.risk, "fast": self.extraction == FAST}
            return
        self._controller = SafeController(
            self.pipeline,
            cost_limit,
            risk=self.risk,
            num_envs=episodes,
            max_episode_steps=max_episode_steps,
            adapt=False,
            num_inference_steps=self._sampling["num_inference_steps"],
            generator=self._generator,
            fast=self.extraction == FAST,
        )
        self._controller.reset()

    def act(self, observation: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Call the pipeline once for all observations, see `Policy.act`."""
        if self._controller is not None:
            actions: np.ndarray = self._controller.act(observation)[active]
            return actions
        call: Any = self.pipeline
        if self.extraction == BASELINE_EXTRACTION:
            return np.asarray(call(observation[active], generator=self._generator))
        extraction = "safe" if self.extraction == FAST else self.extraction
        settings = {"extraction": extraction, "generator": self._generator}
        settings |= {**self._limits, **self._sampling}
        (actions,) = call(observation[active], return_dict=False, **settings)
        return np.asarray(actions)

    def observe(self, reward: np.ndarray, cost: np.ndarray | None, ended: np.ndarray) -> None:
        """Tell the controller, where there is one; see `Policy.observe`."""
        if isinstance(self._controller, SafeController):
            self._controller.observe(cost, ended)
        elif self._controller is not None:
            self._controller.observe(reward, cost, ended)


@dataclass(frozen=True)
class Rollout:
    """B finished episodes, and how they were played.

    Attributes:
        seed: What determined them.
        cost_limit: Limit that the policy was told, or None.
        feedback: Whether it was told what is left of the limit.
        returns: (B,) float64, undiscounted sums of rewards.
        cost_returns: (B,) float64, undiscounted sums of costs; of several costs (B, K).
        lengths: (B,) int64, steps until the end.
        terminated: (B,) bool, whether the task itself ended the episode (else the time limit did).
        seconds: Time of all steps, policy included, making of the environments not included.
    """

    seed: int
    cost_limit: CostLimit | None
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
    cost_limit: CostLimit | None,
    feedback: bool = True,
    simulator: str = "auto",
    progress: bool = True,
    purpose: str = "evaluation",
    costs: Sequence[str] = ("cost",),
) -> Rollout:
    """Play episodes to their end, told `cost_limit` (None for none), in the order of `episode_seeds(seed,
    episodes, purpose)`; `SIDE_BY_SIDE` at a time.

    The environments are fresh and the policy is reset, so that a rollout is a function of its arguments: the
    same seed gives the same numbers, bit for bit, on the same machine. With `feedback` the policy is told at
    every step what is left of the limit and of the episode, else the limit alone. `costs` are those that the
    simulator reports, as in `make_env`.

    ValueError: no episodes, a negative limit or seed, or actions of the wrong shape or not finite;
    SimulatorNotInstalledError: the simulator is missing.
    """
    task, episodes, seed = get_task(task), check_episodes(episodes), check_seed(seed)
    limit = None if cost_limit is None else check_cost_limit(cost_limit)
    how: dict[str, Any] = {"seed": seed, "simulator": simulator, "purpose": purpose, "costs": costs}
    parts = []
    for first in range(0, episodes, SIDE_BY_SIDE):
        # Other noise in each part, and in the first that of a rollout which has no more.
        (part_seed,) = episode_seeds(seed, 1, purpose, first=first) if first else (seed,)
        env = make_vector_env(task, min(SIDE_BY_SIDE, episodes - first), first=first, **how)
        try:
            parts.append(_play(policy, task, env, part_seed, limit, feedback, progress))
        finally:
            env.close()
    names = ("returns", "cost_returns", "lengths", "terminated")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined, seconds=sum(part.seconds for part in parts))


def check_episodes(episodes: Any) -> int:
    """Check the number of episodes; ValueError if it is not an integer of at least 1."""
    if isinstance(episodes, bool) or not isinstance(episodes, int | np.integer) or episodes < 1:
        raise ValueError(f"episodes must be an integer of at least 1, got {episodes!r}")
    return int(episodes)


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
    cost_limit: CostLimit | None,
    feedback: bool,
    progress: bool,
) -> Rollout:
    from spi_diffusers.progress import progress_bar

    episodes = env.num_envs
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, dtype=np.int64)
    actions = np.zeros(env.action_space.shape, dtype=np.float32)
    steps = task.max_episode_steps
    feedback = feedback and cost_limit is not None
    policy.reset(seed, cost_limit, episodes=episodes, max_episode_steps=steps, feedback=feedback)
    observation, infos = env.reset()
    cost_returns = _costs(infos)  # nothing yet
    start = time.perf_counter()
    with progress_bar(total=task.max_episode_steps, unit="step", disable=not progress, leave=False) as bar:
        limit = "none" if cost_limit is None else shown_limit(cost_limit)
        bar.set_description(f"{task.short_name}, {episodes} episodes, limit {limit}")
        for step in range(task.max_episode_steps):
            active = ~infos["ended"]
            chosen = policy.act(observation, active)
            actions[active] = check_actions(chosen, (int(active.sum()), *actions.shape[1:]), step)
            observation, rewards, _, _, infos = env.step(actions)
            costs = _costs(infos)
            policy.observe(rewards, costs if feedback else None, infos["ended"])
            # An episode that has ended holds with reward 0 and cost 0.
            returns += rewards
            cost_returns += costs
            lengths += active
            bar.update()
            bar.set_postfix_str(
                f"mean cost {shown_limit(cost_returns.mean(0).round(1).tolist())}", refresh=False
            )
            if infos["ended"].all():
                break
    return Rollout(
        seed=seed,
        cost_limit=cost_limit,
        feedback=feedback,
        returns=returns,
        cost_returns=cost_returns,
        lengths=lengths,
        terminated=np.array(infos["terminated_episode"], dtype=bool),
        seconds=time.perf_counter() - start,
    )


def _costs(infos: Mapping[str, Any]) -> np.ndarray:
    """What a step cost, (B,), or (B, K) of several costs, float64, whatever gymnasium makes of arrays."""
    return np.array(infos["cost"].tolist(), dtype=np.float64)
