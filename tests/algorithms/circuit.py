"""The circuit: a lap of six states, with two shortcuts that cost.

    0 -> 1 -> 2 -> 3 -> 4 -> 5 -> 0      WALK, free
    0 -------> 2    3 ------------> 0    JUMP, cost 1: saves one step at 0, two at 3

Entering state 0 earns 1. In the other states JUMP slips: it stays there, for nothing. It never ends, so an
episode is cut by time only, and a cost limit per episode is a rate. Cost per step of going round for ever:
0 without shortcuts, about 1/4 with the one at 3, which earns half as much again, and 2/3 with both, which
earns twice as much as none. The shortcut at 0 alone (1/5) earns less per cost than the one at 3.

An action is one number in [-1, 1], and JUMP the likelier the larger it is: surely from 0.8 on, never up to
-0.8, in proportion between. So an action may stand for any random move, there is a slope to climb between the
moves, and the best of all policies can be acted out by a deterministic actor.
"""

import numpy as np
from algorithm_testbed import World
from constrained_mdp import ConstrainedMDP

from spi_diffusers.data.transitions import TransitionDataset

STATES, STEPS, GAMMA = 6, 100, 0.9
WALK, JUMP = 0, 1
FORKS = [0, 3]
#: Size from which on an action makes its move surely.
SURE = 0.8
#: Share of actions above zero at the forks: two behaviours, and how many episodes of each the data has.
HASTY, CAREFUL = 0.95, 0.05
HASTY_EPISODES, CAREFUL_EPISODES = 60, 40
#: The same in the other states, of both.
SLIPS = 0.2


def circuit() -> ConstrainedMDP:
    """The dynamics, started evenly everywhere."""
    states = np.arange(STATES)
    next_state = np.stack([(states + 1) % STATES, states], axis=1)
    next_state[FORKS, JUMP] = [2, 0]
    cost = np.zeros((STATES, 2))
    cost[FORKS, JUMP] = 1.0
    reward = (next_state == 0).astype(np.float64)
    never = np.zeros((STATES, 2), dtype=bool)
    return ConstrainedMDP(next_state, reward, cost, never, np.full(STATES, 1 / STATES), GAMMA)


def circuit_moves(actions: np.ndarray) -> np.ndarray:
    """Probabilities (N, 2) of the moves that actions (N, 1) make."""
    jump = np.clip(0.5 + 0.5 * actions[:, 0] / SURE, 0.0, 1.0)
    return np.stack([1.0 - jump, jump], axis=1)


def circuit_data(seed: int = 0) -> TransitionDataset:
    """100 episodes of 100 steps, of two behaviours; observations are one-hot.

    The size of an action is spread evenly over [0, 1].
    """
    mdp, generator = circuit(), np.random.default_rng(seed)
    at_forks = np.repeat([HASTY, CAREFUL], [HASTY_EPISODES, CAREFUL_EPISODES])
    here, steps = np.zeros(len(at_forks), dtype=np.int64), []
    for step in range(STEPS):
        above = generator.random(len(here)) < np.where(np.isin(here, FORKS), at_forks, SLIPS)
        size = generator.random(len(here))
        action = np.where(above, size, -size)[:, None].astype(np.float32)
        move = (generator.random(len(here)) < circuit_moves(action)[:, JUMP]).astype(np.int64)
        steps.append((here, action, move, np.full(len(here), step == STEPS - 1)))
        here = mdp.next_state[here, move]
    # Episode after episode.
    state, action, move, truncated = (
        np.stack(column, axis=1).reshape(len(here) * STEPS, -1) for column in zip(*steps, strict=True)
    )
    made = (state[:, 0], move[:, 0])
    one_hot = np.eye(STATES, dtype=np.float32)
    columns = {
        "observation": one_hot[made[0]],
        "next_observation": one_hot[mdp.next_state[made]],
        "action": action,
        "reward": mdp.reward[made],
        "cost": mdp.cost[made],
        "terminated": mdp.terminated[made],
        "truncated": truncated[:, 0],
    }
    return TransitionDataset.from_columns(columns, source="circuit")


def circuit_world() -> World:
    """The circuit with its data."""
    return World(circuit(), np.eye(STATES, dtype=np.float32), circuit_moves, circuit_data())
