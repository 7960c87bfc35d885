"""Small real policies of BallCircle: drive clockwise along the circle, and keep off the walls if asked to."""

import numpy as np

RADIUS, WALL = 7.0, 6.0


class BallCircler:
    """Follows the circle; crosses the walls (cost) while the budget lasts, turns back before them after.

    Args:
        noise: standard deviation of Gaussian noise on the actions, from the policy's own generator.
        margin: budget below which it keeps off the walls; infinity never goes there.
    """

    def __init__(self, noise: float = 0.0, margin: float = 4.0) -> None:
        self.noise, self.margin = noise, margin
        self.calls: list[tuple[np.ndarray, np.ndarray | None]] = []

    def reset(self, seed, cost_limit, *, episodes, max_episode_steps, feedback):
        self.generator = np.random.default_rng(seed)
        self.calls = []
        self.told = (cost_limit, episodes, max_episode_steps, feedback)
        self.limit, self.spent, self.costs = cost_limit, np.zeros(episodes), []

    def observe(self, reward, cost, ended):
        self.costs.append(cost)
        self.spent = self.spent + (0.0 if cost is None else cost)

    def act(self, observation, active):
        observation = observation[active]
        cost_budget = None if self.limit is None else (self.limit - self.spent)[active]
        self.calls.append((observation, cost_budget))
        position, velocity = 10 * observation[:, :2], 5 * observation[:, 2:4]
        distance = np.linalg.norm(position, axis=1, keepdims=True) + 1e-6
        clockwise = np.stack([position[:, 1], -position[:, 0]], axis=1) / distance
        wanted = 4 * clockwise + (RADIUS - distance) * position / distance
        if cost_budget is not None:
            ahead = position[:, 0] + 1.5 * velocity[:, 0]
            turn_back = (cost_budget <= self.margin) & (np.abs(ahead) > WALL - 2)
            wanted[turn_back, 0] = -3 * np.sign(ahead[turn_back])
        action = wanted - velocity + self.noise * self.generator.standard_normal(wanted.shape)
        return np.clip(action, -1, 1).astype(np.float32)


class RandomPolicy:
    """Uniform actions in [-1, 1], from the policy's own generator."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim
        self.batch_sizes: list[int] = []

    def reset(self, seed, cost_limit, *, episodes, max_episode_steps, feedback):
        self.generator = np.random.default_rng(seed)
        self.batch_sizes = []

    def observe(self, reward, cost, ended):
        pass

    def act(self, observation, active):
        self.batch_sizes.append(int(active.sum()))
        return self.generator.uniform(-1, 1, (self.batch_sizes[-1], self.action_dim))
