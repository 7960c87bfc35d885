"""Small constrained decision processes whose optimum under a cost limit is computed exactly.

Values are discounted sums from a distribution of start states. With the occupancy
d(s, m) = sum_t gamma^t P(s_t = s, m_t = m) both are linear: reward sum_sm d r, cost sum_sm d c. So the best
policy of all, random ones included, is the solution of a linear program (Altman 1999).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True)
class ConstrainedMDP:
    """Deterministic dynamics of S states and M moves.

    Attributes:
        next_state: State that a move leads to, (S, M) int.
        reward: Not negative, (S, M).
        cost: Not negative, (S, M).
        terminated: Whether the move ends the episode, (S, M) bool.
        start: Distribution of the states that values are averaged over, (S,).
        gamma: Discount, in [0, 1).
    """

    next_state: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    terminated: np.ndarray
    start: np.ndarray
    gamma: float

    @property
    def shape(self) -> tuple[int, int]:
        """S and M."""
        return self.next_state.shape

    def transition(self) -> np.ndarray:
        """Probability that the episode goes on in s', (S, M, S)."""
        return np.eye(self.shape[0])[self.next_state] * ~self.terminated[..., None]


@dataclass(frozen=True)
class Values:
    """What a policy is worth.

    Attributes:
        reward: Discounted reward from the start distribution.
        cost: Discounted cost from the start distribution.
        policy: Probabilities of the moves, (S, M).
        state_reward: Discounted reward from each state, (S,).
        state_cost: Discounted cost from each state, (S,).
    """

    reward: float
    cost: float
    policy: np.ndarray
    state_reward: np.ndarray
    state_cost: np.ndarray


def evaluate(mdp: ConstrainedMDP, policy: np.ndarray) -> Values:
    """Exact values of a policy, by the Bellman equation, which is linear.

    Args:
        mdp: The decision process.
        policy: Probabilities of the moves in each state, (S, M).
    """
    assert policy.shape == mdp.shape
    assert np.allclose(policy.sum(axis=1), 1.0)
    moves_on = np.einsum("sm,smt->st", policy, mdp.transition())
    signals = np.stack([(policy * signal).sum(axis=1) for signal in (mdp.reward, mdp.cost)], axis=1)
    state_values = np.linalg.solve(np.eye(len(policy)) - mdp.gamma * moves_on, signals)
    reward, cost = mdp.start @ state_values
    return Values(float(reward), float(cost), policy, *state_values.T)


def constrained_optimum(mdp: ConstrainedMDP, threshold: float = np.inf) -> Values:
    """The best policy of all with a discounted cost of at most `threshold`, by linear programming.

    Maximises sum d r over d >= 0 with sum_m d(s', m) - gamma sum_sm P(s' | s, m) d(s, m) = start(s') for
    every s', and sum d c <= threshold. The policy is d(s, .) / d(s); uniform where no path leads.

    Raises:
        ValueError: No policy keeps the threshold.
    """
    states, moves = mdp.shape
    flow = np.repeat(np.eye(states), moves, axis=0) - mdp.gamma * mdp.transition().reshape(-1, states)
    limited = np.isfinite(threshold)
    result = linprog(
        -mdp.reward.ravel(),
        A_ub=mdp.cost.reshape(1, -1) if limited else None,
        b_ub=[threshold] if limited else None,
        A_eq=flow.T,
        b_eq=mdp.start,
        method="highs",
    )
    if not result.success:
        raise ValueError(f"no policy keeps a discounted cost of {threshold}: {result.message}")
    occupancy = result.x.reshape(states, moves).clip(0.0)
    total = occupancy.sum(axis=1, keepdims=True)
    policy = np.divide(occupancy, total, out=np.full_like(occupancy, 1.0 / moves), where=total > 1e-9)
    return evaluate(mdp, policy)


def value_iteration(mdp: ConstrainedMDP, sweeps: int = 2000) -> np.ndarray:
    """The optimal reward from each state without a limit, (S,): an independent check of the program."""
    value = np.zeros(mdp.shape[0])
    for _ in range(sweeps):
        value = (mdp.reward + mdp.gamma * mdp.transition() @ value).max(axis=1)
    return value


def episode_sums(mdp: ConstrainedMDP, policy: np.ndarray, steps: int) -> Values:
    """The same as `evaluate`, not discounted, for an episode of so many steps."""
    moves_on = np.einsum("sm,smt->st", policy, mdp.transition())
    signals = np.stack([(policy * signal).sum(axis=1) for signal in (mdp.reward, mdp.cost)], axis=1)
    sums = np.zeros_like(signals)
    for _ in range(steps):
        sums = signals + moves_on @ sums
    reward, cost = mdp.start @ sums
    return Values(float(reward), float(cost), policy, *sums.T)


def deterministic_policies(mdp: ConstrainedMDP) -> Iterator[np.ndarray]:
    """All M^S of them, each (S, M)."""
    states, moves = mdp.shape
    for choice in itertools.product(range(moves), repeat=states):
        yield np.eye(moves)[list(choice)]


def frontier(policies: Sequence[Values]) -> list[Values]:
    """The policies that no other one and no mix of two others beats, cheapest first: the upper hull."""
    hull: list[Values] = []
    for values in sorted(policies, key=lambda values: (values.cost, -values.reward)):
        if hull and values.reward <= hull[-1].reward + 1e-9:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], values) + 1e-9:
            hull.pop()
        hull.append(values)
    return hull


def _slope(low: Values, high: Values) -> float:
    return (high.reward - low.reward) / (high.cost - low.cost)


@dataclass(frozen=True)
class Neighbours:
    """The deterministic policies on either side of a limit.

    Attributes:
        within: Of those that keep it, the one that earns most.
        beyond: The cheapest one beyond it on the frontier; None if there is none.
        slack_cost: What a cost may be off.
        slack_reward: What a reward may be off.
    """

    within: Values
    beyond: Values | None
    slack_cost: float
    slack_reward: float


def neighbours(threshold: float, policies: Sequence[Values]) -> Neighbours:
    """The deterministic policies on either side of a limit, and the tolerance that follows from them.

    A wrong policy is off by the whole distance to its neighbour: from the threshold to `beyond` in cost, from
    `within` to `beyond` in reward. A quarter of it is allowed. Where nothing lies beyond, the neighbour is
    the one before `within` on the frontier.
    """
    within = max((v for v in policies if v.cost <= threshold + 1e-9), key=lambda values: values.reward)
    best = frontier(policies)
    beyond = next((v for v in best if v.cost > threshold + 1e-9), None)
    if beyond is None:
        return Neighbours(within, None, 0.0, (within.reward - best[-2].reward) / 4)
    gap = beyond.reward - within.reward
    return Neighbours(within, beyond, (beyond.cost - threshold) / 4, gap / 4)
