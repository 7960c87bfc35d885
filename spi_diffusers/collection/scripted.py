"""A scripted driver for CarCircle, where PPO settles for shuttling to and fro.

Pure pursuit (Coulter 1992, CMU-RI-TR-92-01): steer towards a point ahead on the path. The reward asks for
driving clockwise along a circle that leaves the safe strip |x| <= 6, so the point is held within a strip of
its own. How wide that is, speed, gains, noise and lapses are drawn anew for every episode: careful, greedy
and clumsy drivers together cover the trade-off between reward and cost. Drivers are drawn at random at first,
then around the best so far.
"""

from dataclasses import astuple, dataclass, fields
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.episodes import Episode, EpisodeRecorder, round_significant
from spi_diffusers.data.tasks import Task
from spi_diffusers.envs import make_env

_EPISODES_PER_ROUND = 20
_COSTS_PER_LEVEL = 5  # cost returns 0 to 4 are one level, 5 to 9 the next
_BEST_PER_LEVEL = 4  # drivers of each level that others are drawn around
_SHARE_AROUND_THE_BEST = 0.6


@dataclass(frozen=True)
class Driver:
    """How one episode is driven.

    Attributes:
        radius: Radius of the path, in metres (the task's circle: 7).
        edge: The path's |x| is at most this, in metres (the task's strip: 6).
        lookahead: How far ahead along the path the driver looks, in radians.
        gain: Steering per radian of heading error.
        throttle: Share of full speed, in (0, 1].
        noise: Standard deviation of the noise on actions.
        lapse: Probability per step that the driver starts to look away, for ten steps.
    """

    radius: float
    edge: float
    lookahead: float
    gain: float
    throttle: float
    noise: float
    lapse: float


def draw_driver(rng: np.random.Generator) -> Driver:
    """Draw a driver: mostly able ones, as their episodes are the ones worth learning from."""
    able = rng.random() < 0.6
    return Driver(
        radius=rng.uniform(6.4, 7.1) if able else rng.uniform(4.5, 7.2),
        edge=rng.uniform(5.2, 7.2),
        lookahead=rng.uniform(0.25, 0.5) if able else rng.uniform(0.2, 0.8),
        gain=rng.uniform(1.5, 3.5) if able else rng.uniform(0.7, 4.0),
        throttle=rng.uniform(0.85, 1.0) if able else rng.uniform(0.3, 1.0),
        noise=rng.uniform(0.0, 0.1) if able else rng.uniform(0.0, 0.5),
        lapse=0.0 if able else rng.uniform(0.0, 0.02),
    )


def vary_driver(driver: Driver, rng: np.random.Generator) -> Driver:
    """Draw a driver much like another one."""
    normal = rng.standard_normal(6)
    return Driver(
        radius=driver.radius + 0.1 * normal[0],
        edge=driver.edge + 0.1 * normal[1],
        lookahead=driver.lookahead * np.exp(0.08 * normal[2]),
        gain=driver.gain * np.exp(0.1 * normal[3]),
        throttle=min(driver.throttle * np.exp(0.03 * normal[4]), 1.0),
        noise=driver.noise * np.exp(0.3 * normal[5]),
        lapse=driver.lapse,
    )


class PurePursuit:
    """Drives one episode of CarCircle; `rng` gives noise and lapses."""

    def __init__(self, driver: Driver, rng: np.random.Generator):
        self.driver = driver
        self._rng = rng
        self._looking_away = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Choose throttle and steering, (2,) float32 in [-1, 1].

        The observation, (8,), begins with x/10, y/10, two velocities, and sine and cosine of the yaw.
        """
        driver = self.driver
        x, y = 10.0 * observation[0], 10.0 * observation[1]
        yaw = np.arctan2(observation[4], observation[5])
        ahead = np.arctan2(y, x) - driver.lookahead  # clockwise
        target = driver.radius * np.array([np.cos(ahead), np.sin(ahead)])
        target[0] = np.clip(target[0], -driver.edge, driver.edge)
        heading = np.arctan2(target[1] - y, target[0] - x)
        # The model faces backwards: negative throttle drives along yaw + pi, positive steering turns right.
        error = (heading - yaw - np.pi + np.pi) % (2 * np.pi) - np.pi
        if self._rng.random() < driver.lapse:
            self._looking_away = 10
        steering = 0.0 if self._looking_away > 0 else -driver.gain * error
        self._looking_away -= 1
        action = np.array([-driver.throttle, steering]) + driver.noise * self._rng.standard_normal(2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class ScriptedRun:
    """Plays the scripted driver; goes in rounds as `BehaviorRun` does, and for the same reason."""

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
        recorder = EpisodeRecorder(observation)
        ended = False
        while not ended:
            action = driver(observation)
            if self.round_actions:
                action = round_significant(action)
            observation, reward, terminated, truncated, info = env.step(action)
            recorder.add(action, float(reward), info["cost"], observation)
            ended = terminated or truncated
        return recorder.finish(bool(terminated))

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
