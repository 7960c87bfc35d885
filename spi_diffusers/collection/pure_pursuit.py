"""A scripted driver for CarCircle, where PPO settles for shuttling to and fro.

Pure pursuit (Coulter 1992, CMU-RI-TR-92-01): steer towards a point ahead on the path. The reward asks for
driving clockwise along a circle that leaves the safe strip |x| <= 6, so the point is held within a strip of
its own. How wide that is, speed, gains, noise and lapses are drawn anew for every episode: careful, greedy
and clumsy drivers together cover the trade-off between reward and cost.
"""

from dataclasses import dataclass

import numpy as np


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
    """Drives one episode of CarCircle.

    Args:
        driver: How.
        rng: Source of noise and lapses.
    """

    def __init__(self, driver: Driver, rng: np.random.Generator):
        self.driver = driver
        self._rng = rng
        self._looking_away = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Choose an action.

        Args:
            observation: (8,), beginning with x/10, y/10, two velocities, and sine and cosine of the yaw.

        Returns:
            Throttle and steering, (2,) float32 in [-1, 1].
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
