"""One behavior-policy run: train PPO-Lagrangian in the simulator, and keep the episodes it plays.

A run goes in rounds. In a round every environment is reset with a seed of its own and plays as many steps as
the task's longest episode has; policy updates happen within. All randomness of a round follows from (seed,
round), and a reset with a seed forgets whatever was played before. So the state between rounds is the weights
and a few statistics, and a run that was stopped goes on as if it had not been.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from spi_diffusers.collection.config import CollectConfig, CollectionError
from spi_diffusers.collection.episodes import Episode, EpisodeRecorder, round_significant
from spi_diffusers.collection.ppo_lagrangian import (
    BudgetNetworks,
    RunningMoments,
    Segment,
    ppo_update,
    update_multiplier,
)
from spi_diffusers.data.tasks import Task
from spi_diffusers.envs import make_env
from spi_diffusers.envs.velocity import speed_threshold

_COST_AVERAGE_RATE = 0.1  # of a budget's average cost return, per episode
_PROBE_NOISE = (0.0, 0.25, 0.5)  # shares of the policy's deviation
_OBSERVATION_CLIP = 10.0


class BehaviorRun:
    """Trains one behavior policy and yields its episodes; `seed` decides everything.

    With `round_actions` actions are rounded to 12 significant bits before they are executed.
    """

    def __init__(self, task: Task, config: CollectConfig, seed: int, round_actions: bool = True):
        self.task, self.config, self.seed, self.round_actions = task, config, seed, round_actions
        self.rounds_done = 0
        self.steps_done = 0
        self._envs: list[gymnasium.Env] = []
        if task.observation_dim is None or task.action_dim is None:
            raise CollectionError(f"{task.name}: cannot be collected: its sizes are unknown")
        with torch.random.fork_rng(devices=[]):  # the caller's own random stream is left alone
            torch.manual_seed(seed)
            self.networks = BudgetNetworks(
                task.observation_dim,
                task.action_dim,
                config.num_budgets,
                config.hidden_dims,
                config.initial_log_std,
            )
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=config.learning_rate, eps=1e-5)
        self.observations = RunningMoments(task.observation_dim)
        self.discounted = RunningMoments(2)  # discounted sums of reward and cost, whose spread scales them
        lagrangian = len(config.cost_targets)
        self.multipliers = torch.tensor(
            [config.initial_multiplier] * lagrangian
            + list(config.penalties)
            + [config.speed_penalty] * len(config.speed_targets)
        )
        self.average_cost = torch.full((lagrangian,), float("nan"))
        self._speed_limit = _speed_limits(task, config)

    @property
    def total_steps(self) -> int:
        """Environment steps of the whole run; the last round may exceed them."""
        return self.config.steps

    @property
    def finished(self) -> bool:
        """Whether the run has played all its steps."""
        return self.steps_done >= self.config.steps

    def play_round(self) -> list[Episode]:
        """Play and train for one round; returns its complete episodes."""
        config, task = self.config, self.task
        sequence = np.random.SeedSequence([self.seed, self.rounds_done])
        env_seeds = sequence.generate_state(config.num_envs + 1, np.uint32).tolist()
        self._rng = np.random.default_rng(sequence.spawn(1)[0])
        self._generator = torch.Generator().manual_seed(env_seeds.pop())
        progress = self.steps_done / config.steps
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.1, 1.0 - progress)

        if not self._envs:
            self._envs = [make_env(task) for _ in env_seeds]
        first = [env.reset(seed=seed)[0] for env, seed in zip(self._envs, env_seeds, strict=True)]
        episodes = list(self._play(self._envs, np.stack(first)))
        self._update_multipliers()
        self.rounds_done += 1
        self.steps_done += config.num_envs * task.max_episode_steps
        return episodes

    def close(self) -> None:
        """Close the simulators."""
        while self._envs:
            self._envs.pop().close()

    def _play(self, envs: list[gymnasium.Env], observation: np.ndarray) -> Iterator[Episode]:
        """Play all environments side by side, update every `segment_steps`, and yield what is complete.

        What the time limit of the round cuts off before the episode ends serves training only.
        """
        config, task = self.config, self.task
        count, horizon = config.num_envs, task.max_episode_steps
        budget = self._rng.integers(config.num_budgets, size=count)
        noise = self._draw_noise(count)
        recorders = [EpisodeRecorder(first) for first in observation]
        running = np.zeros((count, 2))
        steps: list[dict[str, np.ndarray]] = []
        for step in range(horizon):
            normalized = self._normalize(observation)
            sampled = self._act(normalized, budget, noise)
            executed = np.clip(sampled, -1.0, 1.0)
            if self.round_actions:
                executed = round_significant(executed)
            played = [env.step(action) for env, action in zip(envs, executed, strict=True)]
            following = np.stack([row[0] for row in played])
            signals = np.array([(row[1], row[4]["cost"]) for row in played])
            terminated = np.array([row[2] for row in played])
            ended = terminated | np.array([row[3] for row in played])
            learned = self._learned_signals(signals, [row[4] for row in played], budget)
            running = config.gamma * running + learned
            steps.append(
                {
                    "observation": normalized,
                    "following": following,
                    "raw": observation,
                    "action": sampled,
                    "budget": budget.copy(),
                    "signals": learned,
                    "running": running,
                    "terminated": terminated,
                    "ended": ended,
                }
            )
            observation = following.copy()
            running = running * ~ended[:, None]
            for index, recorder in enumerate(recorders):
                reward, cost = signals[index]
                recorder.add(executed[index], reward, cost, following[index])
                if ended[index]:
                    episode = recorder.finish(bool(terminated[index]))
                    self._learn_cost(index, int(budget[index]), episode.cost_return)
                    yield episode
                    observation[index], _ = envs[index].reset()
                    budget[index] = self._rng.integers(config.num_budgets)
                    noise[index] = self._draw_noise(count)[index]
                    recorders[index] = EpisodeRecorder(observation[index])
            if len(steps) == config.segment_steps or step == horizon - 1:
                self._update(steps)
                steps = []

    def _learned_signals(self, signals: np.ndarray, infos: list[dict], budget: np.ndarray) -> np.ndarray:
        """Rewards and costs that the policy learns from, (N, 2): not the task's with a speed target."""
        limit = self._speed_limit[budget]
        limited = np.isfinite(limit)
        if not limited.any():
            return signals
        # In m/s, so in the reward's own unit: all robots earn 1 for each m/s.
        excess = np.maximum(np.array([info["speed"] for info in infos]) - limit, 0.0)
        return np.stack([signals[:, 0] - excess, np.where(limited, excess, signals[:, 1])], axis=1)

    def _draw_noise(self, count: int) -> np.ndarray:
        """Share of the policy's deviation for each environment, (N,): the last ones are probes."""
        noise = np.ones(count)
        if self.config.num_probes:
            noise[-self.config.num_probes :] = self._rng.choice(_PROBE_NOISE, size=self.config.num_probes)
        return noise

    def _normalize(self, observation: np.ndarray) -> np.ndarray:
        scaled = (observation - self.observations.mean.numpy()) / self.observations.deviation.numpy()
        return np.clip(scaled, -_OBSERVATION_CLIP, _OBSERVATION_CLIP).astype(np.float32)

    @torch.no_grad()
    def _act(self, observation: np.ndarray, budget: np.ndarray, noise: np.ndarray) -> np.ndarray:
        budgets = torch.from_numpy(budget)
        policy = self.networks.distribution(
            self.networks.inputs(torch.from_numpy(observation), budgets), budgets
        )
        deviation = policy.stddev.numpy() * noise[:, None]
        normal = self._rng.standard_normal(deviation.shape)
        return (policy.mean.numpy() + deviation * normal).astype(np.float32)

    def _learn_cost(self, index: int, budget: int, cost_return: float) -> None:
        """Follow the cost returns of each Lagrangian budget; probes do not count."""
        if index >= self.config.num_envs - self.config.num_probes or budget >= len(self.average_cost):
            return
        before = float(self.average_cost[budget])
        rate = 1.0 if np.isnan(before) else _COST_AVERAGE_RATE
        self.average_cost[budget] = cost_return if rate == 1.0 else before + rate * (cost_return - before)

    def _update_multipliers(self) -> None:
        for budget, target in enumerate(self.config.cost_targets):
            average, multiplier = float(self.average_cost[budget]), float(self.multipliers[budget])
            if not np.isnan(average):
                self.multipliers[budget] = update_multiplier(multiplier, average, target, self.config)

    def _update(self, steps: list[dict[str, np.ndarray]]) -> None:
        config = self.config
        learned = slice(0, config.num_envs - config.num_probes)
        stacked = {name: np.stack([row[name] for row in steps])[:, learned] for name in steps[0]}
        following = self._normalize(stacked["following"])  # by the same statistics as the observations were
        self.discounted.add(torch.from_numpy(stacked["running"]))
        scale = self.discounted.deviation.numpy()
        segment = Segment(
            observation=torch.from_numpy(stacked["observation"]),
            next_observation=torch.from_numpy(following),
            action=torch.from_numpy(stacked["action"]),
            budget=torch.from_numpy(stacked["budget"]),
            signals=torch.from_numpy((stacked["signals"] / scale).astype(np.float32)),
            terminated=torch.from_numpy(stacked["terminated"]),
            ended=torch.from_numpy(stacked["ended"]),
        )
        ppo_update(self.networks, self.optimizer, segment, self.multipliers, config, self._generator)
        self.observations.add(torch.from_numpy(stacked["raw"]))

    def save(self, path: Path) -> None:
        """Write the state between two rounds to a safetensors file."""
        tensors = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        for name in ("observations", "discounted"):
            tensors |= {f"{name}.{key}": value for key, value in vars(getattr(self, name)).items()}
        tensors["multipliers"], tensors["average_cost"] = self.multipliers, self.average_cost
        tensors["progress"] = torch.tensor([self.rounds_done, self.steps_done])
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)

    def load(self, path: Path) -> None:
        """Go on from a state that `save` wrote, of a run with the same task, config and seed."""
        tensors = load_file(path)
        groups: dict[str, dict[str, Any]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = value
        self.networks.load_state_dict(groups["networks"])
        state: dict[int, dict[str, Any]] = {}
        for name, value in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name in ("observations", "discounted"):
            vars(getattr(self, name)).update(groups[name])
        self.multipliers, self.average_cost = tensors["multipliers"], tensors["average_cost"]
        self.rounds_done, self.steps_done = tensors["progress"].tolist()


def _speed_limits(task: Task, config: CollectConfig) -> np.ndarray:
    """Speed that each budget must not exceed, m/s, (K,); infinite for those without a speed target."""
    limits = np.full(config.num_budgets, np.inf)
    if config.speed_targets:
        limits[-len(config.speed_targets) :] = speed_threshold(task) * np.array(config.speed_targets)
    return limits
