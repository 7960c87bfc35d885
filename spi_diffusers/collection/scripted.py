"""Episodes of the scripted driver on CarCircle: drawn at random at first, then around the best so far."""

from dataclasses import astuple, fields
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.episodes import Episode
from spi_diffusers.collection.pure_pursuit import Driver, PurePursuit, draw_driver, vary_driver
from spi_diffusers.data.rounding import round_significant
from spi_diffusers.data.tasks import Task
from spi_diffusers.envs import make_env

_EPISODES_PER_ROUND = 20
_COSTS_PER_LEVEL = 5  # cost returns 0 to 4 are one level, 5 to 9 the next
_BEST_PER_LEVEL = 4  # drivers of each level that others are drawn around
_SHARE_AROUND_THE_BEST = 0.6


class ScriptedRun:
    """Plays the scripted driver; goes in rounds as `BehaviourRun` does, and for the same reason.

    Args:
        task: CarCircle.
        config: Says how many episodes (rounded up to full rounds of 20).
        seed: Decides everything.
        round_actions: Round actions to 12 significant bits before they are executed.
    """

    def __init__(self, task: Task, config: CollectConfig, seed: int, round_actions: bool = True):
        self.task, self.config, self.seed, self.round_actions = task, config, seed, round_actions
        self.rounds_done = 0
        self.steps_done = 0
        self._env: gymnasium.Env | None = None
        self._best: dict[int, list[tuple[float, Driver]]] = {}  # by level of cost return, best first

    @property
    def total_steps(self) -> int:
        """Environment steps of the whole run; the last round may exceed them."""
        return self.config.scripted_episodes * self.task.max_episode_steps

    @property
    def finished(self) -> bool:
        """Whether all episodes have been played."""
        return self.steps_done >= self.total_steps

    def play_round(self) -> list[Episode]:
        """Play some episodes, every one with a driver of its own."""
        rng = np.random.default_rng([self.seed, self.rounds_done])
        if self._env is None:
            self._env = make_env(self.task)
        episodes = []
        for _ in range(_EPISODES_PER_ROUND):
            driver = self._choose(rng)
            episode = self._play(self._env, int(rng.integers(2**31)), PurePursuit(driver, rng))
            self._remember(driver, episode)
            episodes.append(episode)
        self.rounds_done += 1
        self.steps_done += sum(len(episode.reward) for episode in episodes)
        return episodes

    def _choose(self, rng: np.random.Generator) -> Driver:
        if not self._best or rng.random() > _SHARE_AROUND_THE_BEST:
            return draw_driver(rng)
        level = self._best[sorted(self._best)[rng.integers(len(self._best))]]
        return vary_driver(level[rng.integers(len(level))][1], rng)

    def _remember(self, driver: Driver, episode: Episode) -> None:
        if episode.cost_return > self.task.cost_max:
            return
        level = self._best.setdefault(int(episode.cost_return) // _COSTS_PER_LEVEL, [])
        level.append((episode.return_, driver))
        level.sort(key=lambda row: -row[0])
        del level[_BEST_PER_LEVEL:]

    def close(self) -> None:
        """Close the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _play(self, env: gymnasium.Env, seed: int, driver: PurePursuit) -> Episode:
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards, costs = [observation], [], [], []
        ended = False
        while not ended:
            action = driver(observation)
            if self.round_actions:
                action = round_significant(action)
            observation, reward, terminated, truncated, info = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            costs.append(info["cost"])
            ended = terminated or truncated
        return Episode(
            np.stack(observations),
            np.stack(actions),
            np.asarray(rewards, dtype=np.float32),
            np.asarray(costs, dtype=np.float32),
            bool(terminated),
        )

    def save(self, path: Path) -> None:
        """Write the state between two rounds to a safetensors file."""
        rows = [
            [level, return_, *astuple(driver)]
            for level, best in sorted(self._best.items())
            for return_, driver in best
        ]
        width = 2 + len(fields(Driver))
        best = torch.tensor(rows, dtype=torch.float64).reshape(-1, width)
        save_file({"best": best, "progress": torch.tensor([self.rounds_done, self.steps_done])}, path)

    def load(self, path: Path) -> None:
        """Go on from a state that `save` wrote, of a run with the same seed."""
        tensors = load_file(path)
        self._best = {}
        for level, return_, *values in tensors["best"].tolist():
            self._best.setdefault(int(level), []).append((return_, Driver(*values)))
        self.rounds_done, self.steps_done = tensors["progress"].tolist()
