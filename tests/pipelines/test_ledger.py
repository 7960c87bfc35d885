"""The controller's books: what the policy is told, ends, resets and budgets."""

from enum import Enum

import gymnasium
import numpy as np
import pytest
from controller_factory import ONE, TWO, Told, started, step
from pipeline_factory import STEPS


def test_known_ends_are_counted(pipe):
    controller = started(pipe, 20.0, max_episode_steps=2)
    step(controller, ONE)
    step(controller, ONE, 30)
    assert (controller.finished, controller.exceeded) == (1, 1)
    with pytest.raises(RuntimeError, match="the environment has done the 2 steps of an episode: call reset"):
        controller.act(ONE)


def test_ended_environments_rest_until_they_are_reset(pipe):
    told = Told(pipe)
    controller = started(told, [10.0, 20.0], num_envs=2, adapt=False)
    step(controller, TWO, [1, 2], [False, True])
    observation = TWO.copy()
    observation[1] = np.nan
    actions = step(controller, observation, [1, np.nan], [False, True])
    assert told.calls[-1][0] == 1
    assert told.last == [[9.0], [STEPS - 1]]
    assert actions[1].tolist() == [0.0, 0.0]
    assert (controller.spent.tolist(), controller.steps.tolist()) == ([2.0, 2.0], [2, 1])
    controller.reset([False, True], cost_limit=30)
    step(controller, TWO)
    assert told.last == [[8.0, 30.0], [STEPS - 2, STEPS]]
    step(controller, TWO, 0, True)
    with pytest.raises(RuntimeError, match="The episode has ended"):
        controller.act(TWO)


AutoresetMode = Enum("AutoresetMode", {"NEXT_STEP": "NextStep", "SAME_STEP": "SameStep"})


@pytest.mark.parametrize("mode", ["next_step", AutoresetMode.NEXT_STEP])
def test_the_step_that_resets_is_not_counted(pipe, mode):
    told = Told(pipe)
    controller = started(told, 20.0, num_envs=2, autoreset=mode, adapt=False)
    step(controller, TWO, [1, 2], [False, True])
    step(controller, TWO, [1, 0])
    assert told.last == [[19.0], [STEPS - 1]]
    step(controller, TWO, [1, 5], [True, True])
    assert told.last == [[18.0, 20.0], [STEPS - 2, STEPS]]
    assert controller.spent.tolist() == [3.0, 5.0]
    assert step(controller, TWO).tolist() == [[0.0, 0.0]] * 2, "all are reset, none is asked for"
    assert len(told.calls) == 3
    step(controller, TWO)
    assert told.last == [[20.0, 20.0], [STEPS, STEPS]]


def test_the_step_that_ends_resets_as_well(pipe):
    told = Told(pipe)
    controller = started(told, 20.0, num_envs=2, autoreset=AutoresetMode.SAME_STEP, adapt=False)
    step(controller, TWO, [1, 2], [False, True])
    step(controller, TWO)
    assert told.last == [[19.0, 20.0], [STEPS - 1, STEPS]]
    assert controller.finished == 1


class Costly(gymnasium.Env):
    """Costs the number of the step; ends after `length` steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, length):
        self.length = length

    def reset(self, **kwargs):
        self.done = 0
        return ONE, {}

    def step(self, action):
        self.done += 1
        return ONE, 0.0, self.done == self.length, False, {"cost": float(self.done)}


@pytest.mark.skipif(
    hasattr(gymnasium.vector, "AutoresetMode"), reason="later versions lay the last info out otherwise"
)
def test_in_a_vector_environment_of_gymnasium(pipe):
    env = gymnasium.vector.SyncVectorEnv([lambda: Costly(2), lambda: Costly(3)])
    controller = started(pipe, 4.0, num_envs=2, autoreset="same_step")
    observation, _ = env.reset()
    for _ in range(6):
        observation, _, terminated, truncated, infos = env.step(controller.act(observation))
        last, ended = infos.get("final_info", [None, None]), terminated | truncated
        cost = [info["cost"] if info else infos["cost"][i] for i, info in enumerate(last)]
        controller.observe(cost, ended)
    assert (controller.finished, controller.exceeded) == (5, 2), "3 of cost 3, 2 of cost 6"


def test_a_limit_is_changed_on_the_way(pipe):
    told = Told(pipe)
    controller = started(told, 20.0, num_envs=2)
    step(controller, TWO, [5, 6])
    controller.set_cost_limit(10)
    step(controller, TWO)
    assert told.last[0] == [5.0, 4.0]
    controller.set_cost_limit([7, 0], mask=[True, False])
    assert controller.cost_limit.tolist() == [7.0, 10.0]
    with pytest.raises(ValueError, match=r"cost_limit 5.5 is below what environment 1 spent, 6"):
        controller.set_cost_limit(5.5)
    assert controller.cost_limit.tolist() == [7.0, 10.0]


def test_a_budget_for_several_episodes(pipe):
    told = Told(pipe)
    controller = started(told, 30.0, episodes=3)
    step(controller, ONE, 4)
    step(controller, ONE, 2, True)
    assert told.calls[0][1]["cost_budget"].tolist() == [10.0]
    assert told.last[0] == [6.0]
    controller.reset()
    step(controller, ONE, 24, True)
    assert told.last[0] == [12.0]
    controller.reset()
    assert (controller.spent, controller.finished) == (30.0, 0)
    step(controller, ONE, 1, True)
    assert (controller.status, controller.finished, controller.exceeded) == ("overspent", 1, 1)
    controller.reset()
    step(controller, ONE, 1, True)
    assert (told.last[0], controller.spent) == ([10.0 / controller.scale], 1.0)
    controller.reset(cost_limit=60)
    assert controller.spent == 0.0
    assert controller.finished == 1, "that one was given up"


def test_an_episode_that_is_given_up_counts_only_if_it_is_over(pipe):
    controller = started(pipe, 5.0)
    step(controller, ONE, 4)
    controller.reset()
    assert controller.finished == 0
    step(controller, ONE, 6)
    controller.reset()
    assert (controller.finished, controller.exceeded) == (1, 1)
    assert controller.scale > 1
