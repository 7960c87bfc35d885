"""The Pixel world of the paper's Figure 2: a 3 x n grid on which every value has a closed form.

    row 0   S . . . . G      S start (0, 0), G goal (0, n - 1), reward 1
    row 1   . . . . . .      . grass, neither reward nor cost
    row 2   . . . . . T      T trap (2, n - 1), cost 1

Entering the goal or the trap ends the episode. The white trajectory goes down to the middle row, along it
to the last column, and there down into the trap instead of up to the goal: n + 1 moves, so that the trap
is entered at step index n (the first move has index 0). The paper's closed forms at the start follow:

* with the cost c, the discounted cost is gamma^n: gamma^3 in the 3 x 3 and gamma^6 in the 3 x 6 world,
  and vanishes as n grows;
* with c' = 1 - c, the safety value is gamma^0 + ... + gamma^(n-1) (n = 6: up to gamma^5): n safe moves,
  then c' = 0 in the trap. Since the episode ends, c' is a survival bonus too: reaching the goal early ends
  it just the same (the value of k moves to the goal is gamma^0 + ... + gamma^(k-1)).

The paper shows the figure without coordinates; this is the geometry whose shortest ways to the trap have
exactly the lengths that its formulas name.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from spi_diffusers.envs.make import check_count

PIXEL_WORLD_ID = "spi_diffusers/PixelWorld-v0"

NUM_ROWS = 3
RIGHT, DOWN, LEFT, UP = range(4)
#: Row and column step of each move.
_MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
_GRASS, _TRAP, _GOAL = (106, 168, 79), (74, 35, 35), (241, 194, 50)
_AGENT, _LINE = (255, 255, 255), (60, 100, 45)
_CELL = 40  # pixels


@dataclass(frozen=True)
class PixelWorldDynamics:
    """Exact dynamics of a 3 x n Pixel world; state = row * n + column, moves RIGHT, DOWN, LEFT, UP.

    Attributes:
        num_columns: n.
        next_state: (3n, 4) int64, the state that a move leads to; moves against the border stay.
        reward: (3n, 4) float64, 1 for entering the goal.
        cost: (3n, 4) float64, 1 for entering the trap.
        terminated: (3n, 4) bool, whether the move ends the episode. In the goal and in the trap all
            moves stay, with neither reward nor cost, and count as ended.
    """

    num_columns: int
    next_state: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    terminated: np.ndarray

    @property
    def start(self) -> int:
        """State of the start, row 0, column 0."""
        return 0

    @property
    def goal(self) -> int:
        """State of the goal, row 0, last column."""
        return self.num_columns - 1

    @property
    def trap(self) -> int:
        """State of the trap, row 2, last column."""
        return NUM_ROWS * self.num_columns - 1

    def observations(self) -> np.ndarray:
        """Observation of every state, (3n, 2) float32: x and y in [-1, 1], y growing downwards."""
        row, column = np.divmod(np.arange(NUM_ROWS * self.num_columns), self.num_columns)
        x = 2 * column / (self.num_columns - 1) - 1
        y = 2 * row / (NUM_ROWS - 1) - 1
        return np.stack([x, y], axis=1).astype(np.float32)

    def action_values(self, policy: np.ndarray, signal: np.ndarray, gamma: float) -> np.ndarray:
        """Solve the Bellman equation of a policy exactly.

        Q(s, a) = signal(s, a) + gamma * (1 - terminated(s, a)) * sum_a' policy(a' | s') Q(s', a'), which is
        Eq. 10 with signal = reward and Eq. 11 with signal = 1 - cost.

        Args:
            policy: (3n, 4) probabilities of the moves in each state.
            signal: (3n, 4) what is summed up, e.g. `reward`, `cost` or `1 - cost`.
            gamma: discount, in [0, 1).

        Returns:
            (3n, 4) float64 action values.

        Raises:
            ValueError: gamma is outside [0, 1), or the policy is not a distribution over the moves.
        """
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
        if policy.shape != signal.shape or (policy < 0).any() or not np.allclose(policy.sum(axis=1), 1):
            raise ValueError(f"policy must hold {signal.shape} probabilities that sum to 1 in each state")
        states = len(policy)
        bootstrap = gamma * ~self.terminated
        # V = sum_a policy * (signal + bootstrap * V[next]), linear in V.
        transition = np.zeros((states, states))
        np.add.at(transition, (np.arange(states)[:, None], self.next_state), policy * bootstrap)
        value = np.linalg.solve(np.eye(states) - transition, (policy * signal).sum(axis=1))
        return signal + bootstrap * value[self.next_state]


def transition_table(num_columns: int) -> PixelWorldDynamics:
    """The exact dynamics of the 3 x n Pixel world; ValueError unless n is an integer of at least 2."""
    n = check_count("num_columns", num_columns, least=2)
    row, column = np.divmod(np.arange(NUM_ROWS * n)[:, None], n)
    move = np.array(_MOVES)
    next_row = np.clip(row + move[:, 0], 0, NUM_ROWS - 1)
    next_column = np.clip(column + move[:, 1], 0, n - 1)
    next_state = next_row * n + next_column
    goal, trap = n - 1, NUM_ROWS * n - 1
    next_state[[goal, trap]] = [[goal], [trap]]
    reward, cost = (next_state == goal).astype(np.float64), (next_state == trap).astype(np.float64)
    reward[goal] = cost[trap] = 0.0
    terminated = (next_state == goal) | (next_state == trap)
    return PixelWorldDynamics(n, next_state, reward, cost, terminated)


def white_trajectory(num_columns: int) -> list[int]:
    """Moves of the white trajectory from the start into the trap: n + 1 of them, the last at index n."""
    return [DOWN] + [RIGHT] * (num_columns - 1) + [DOWN]


def white_policy(num_columns: int) -> np.ndarray:
    """A policy, (3n, 4) probabilities, that follows the white trajectory from the start.

    Top row: down; middle row: right, in the last column down; bottom row: right.
    """
    move = np.full((NUM_ROWS, num_columns), RIGHT)
    move[0] = DOWN
    move[1, -1] = DOWN
    return np.eye(4)[move.ravel()]


def safe_policy(num_columns: int) -> np.ndarray:
    """A policy, (3n, 4) probabilities, that reaches the goal by a shortest way: up, then right."""
    move = np.full((NUM_ROWS, num_columns), UP)
    move[0] = RIGHT
    return np.eye(4)[move.ravel()]


class PixelWorldEnv(gymnasium.Env):
    """The Pixel world as a gymnasium environment (`gymnasium.make("spi_diffusers/PixelWorld-v0")`).

    Observation: (2,) float32, the position (x, y) scaled to [-1, 1], y growing downwards.
    Action: (2,) float32 in [-1, 1], of which the larger component decides: x right or left, y down or up
    (x if they are equal in size, right or down if it is zero). With `continuous=False`: 0 right, 1 down,
    2 left, 3 up.
    Reward 1 for reaching the goal; `info["cost"]` 1.0 for falling into the trap; both end the episode.
    Nothing is random. A time limit comes from `gymnasium.make` or `TimeLimit`.

    Args:
        num_columns: n, at least 2.
        continuous: whether actions are a continuous box or four moves.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self, num_columns: int = 3, *, continuous: bool = True, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.dynamics = transition_table(num_columns)
        self.render_mode = render_mode
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32) if continuous else Discrete(4)
        self._continuous = continuous
        self._observations = self.dynamics.observations()
        self._state = self.dynamics.start
        self._visited = [self._state]

    @property
    def state(self) -> int:
        """Where the agent is: row * n + column."""
        return self._state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the agent on the start; the seed changes nothing, as nothing is random."""
        super().reset(seed=seed)
        self._state = self.dynamics.start
        self._visited = [self._state]
        return self._observations[self._state].copy(), {"cost": 0.0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by one cell; a move against the border stays.

        ValueError if the action has the wrong shape, is not finite, or is not a move.
        """
        move = move_of(action) if self._continuous else _check_move(action)
        index = (self._state, move)
        self._state = int(self.dynamics.next_state[index])
        self._visited.append(self._state)
        observation = self._observations[self._state].copy()
        reward, cost = float(self.dynamics.reward[index]), float(self.dynamics.cost[index])
        return observation, reward, bool(self.dynamics.terminated[index]), False, {"cost": cost}

    def render(self) -> np.ndarray | None:
        """Draw the grid: grass green, trap dark, goal yellow, the agent and its way so far white.

        Returns:
            (120, 40 n, 3) uint8, or None (with a warning) without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("PixelWorldEnv was made without a render mode; use 'rgb_array' to see it")
            return None
        n = self.dynamics.num_columns
        image = np.empty((NUM_ROWS * _CELL, n * _CELL, 3), np.uint8)
        image[:] = _GRASS
        for state, color in ((self.dynamics.goal, _GOAL), (self.dynamics.trap, _TRAP)):
            self._cell(image, state)[:] = color
        image[::_CELL] = image[:, ::_CELL] = _LINE
        y, x = np.mgrid[:_CELL, :_CELL] - (_CELL - 1) / 2
        distance = np.hypot(x, y)
        for state in self._visited:
            self._cell(image, state)[distance < _CELL / 12] = _AGENT
        self._cell(image, self._state)[distance < _CELL / 3] = _AGENT
        return image

    def __str__(self) -> str:
        return f"<PixelWorldEnv 3x{self.dynamics.num_columns}>"

    def _cell(self, image: np.ndarray, state: int) -> np.ndarray:
        row, column = divmod(state, self.dynamics.num_columns)
        return image[row * _CELL : (row + 1) * _CELL, column * _CELL : (column + 1) * _CELL]


def move_of(action: Any) -> int:
    """The move that a continuous action, (2,) x and y, makes; ValueError for any other shape or NaN."""
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (2,) or not np.isfinite(action).all():
        raise ValueError(f"a Pixel world action is 2 finite numbers, got {action.tolist()}")
    x, y = action
    if abs(x) >= abs(y):
        return RIGHT if x >= 0 else LEFT
    return DOWN if y >= 0 else UP


def _check_move(action: Any) -> int:
    move = np.asarray(action)
    if move.shape != () or move.dtype.kind not in "iu" or not 0 <= move < len(_MOVES):
        raise ValueError(f"a Pixel world move is 0 (right), 1 (down), 2 (left) or 3 (up), got {action!r}")
    return int(move)


gymnasium.register(
    id=PIXEL_WORLD_ID,
    entry_point="spi_diffusers.envs.pixel_world:PixelWorldEnv",
    max_episode_steps=100,
)
