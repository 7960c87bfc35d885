"""The controller's books: what the policy is told, ends, resets, budgets, estimates, state, bad input."""

import json
import time
from enum import Enum

import gymnasium
import numpy as np
import pytest
import torch
from pipeline_factory import STEPS, make_pipeline, pipeline_by_hand

from spi_diffusers.pipelines import InfeasibleError, SafeController
from spi_diffusers.pipelines.saving import pipeline_code

ONE, TWO = np.zeros(3, np.float32), np.zeros((2, 3), np.float32)
RISK = 0.5


@pytest.fixture(scope="module")
def pipe():
    return pipeline_by_hand()


class Told:
    """Passes calls on to a pipeline and keeps what it was told."""

    def __init__(self, pipeline):
        self.pipeline, self.calls = pipeline, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, observation, **arguments):
        self.calls.append((len(np.atleast_2d(observation)), arguments))
        return self.pipeline(observation, **arguments)

    @property
    def last(self):
        return [self.calls[-1][1][name].tolist() for name in ("cost_budget", "steps_left")]


def started(pipeline, *arguments, **options):
    controller = SafeController(pipeline, *arguments, **options)
    controller.reset()
    return controller


def step(controller, observation, cost=0.0, ended=False):
    action = controller.act(observation)
    controller.observe(cost, ended)
    return action


def test_actions_are_those_of_the_pipeline_bit_for_bit():
    pipeline, generator = make_pipeline(), np.random.default_rng(0)
    one, many = started(pipeline, 40.0, risk=0.1), started(pipeline, 40.0, risk=0.1, num_envs=4)
    cost = np.zeros(4)
    for number in range(20):
        observation, costs = generator.standard_normal((4, 3)), generator.random(4)
        told = {"cost_budget": 40.0 - cost, "steps_left": STEPS - number, "risk": 0.1}
        expected = pipeline(observation, **told).actions
        np.testing.assert_array_equal(many.act(observation), expected)
        told["cost_budget"] = 40.0 - cost[0]
        np.testing.assert_array_equal(one.act(observation[0]), pipeline(observation[0], **told).actions)
        many.observe(costs)
        one.observe(costs[0])
        cost += costs
    np.testing.assert_array_equal(many.spent, cost)
    assert (one.spent, one.steps) == (cost[0], 20)


def test_actions_come_as_observations_do(pipe):
    assert step(started(pipe, 5), ONE).shape == (2,)
    assert step(started(pipe, 5), ONE[None]).shape == (1, 2)
    assert step(started(pipe, 5), [0.0, 0.0, 0.0]).shape == (2,)
    assert isinstance(step(started(pipe, 5), torch.zeros(3)), torch.Tensor)
    assert step(started(pipe, 5, num_envs=2), TWO.tolist()).shape == (2, 2)


def test_the_loop_of_one_environment_with_an_early_end(pipe):
    told = Told(pipe)
    controller = started(told, 20.0)
    step(controller, ONE, 3)
    step(controller, ONE, 1.5, True)
    assert told.last == [[17.0], [STEPS - 1]]
    assert (controller.spent, controller.steps, controller.cost_source) == (4.5, 2, "observed")
    with pytest.raises(RuntimeError, match="The episode has ended: call reset"):
        controller.act(ONE)
    controller.reset()
    step(controller, ONE)
    assert told.last[1] == [STEPS]
    assert (controller.spent, controller.finished, controller.exceeded) == (0.0, 1, 0)


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


def test_costs_that_are_not_reported_are_estimated(pipe):
    """By hand: the policy of w costs 1.35 - w a step; a limit of 75 takes w = 0.7."""
    controller = started(pipe, 75.0, risk=RISK, num_envs=2)
    step(controller, TWO, None)
    assert controller.spent == pytest.approx([0.65, 0.65])
    assert controller.cost_source.tolist() == ["estimated"] * 2
    step(controller, TWO, [1, 2], True)
    assert controller.cost_source.tolist() == ["mixed"] * 2
    assert (controller.finished, controller.scale) == (0, 1.0), "nothing is learned"
    controller.reset()
    assert controller.cost_source.tolist() == ["none"] * 2


def test_estimates_are_in_the_units_of_the_policy_wherever_its_actions_lie():
    pipeline = pipeline_by_hand(noise_options={"action_low": 0.0, "action_high": 3.0})
    with torch.no_grad():
        pipeline.evaluation_critic.net[0].weight[1, 3] = 0.1  # the cost depends on the action, in [-1, 1]
    controller = started(pipeline, 75.0, risk=RISK)
    action = step(controller, ONE, None)
    weight = pipeline(ONE, cost_budget=75.0, steps_left=STEPS, risk=RISK)
    weight = float(weight.safety_weights[0, weight.chosen[0]])
    assert controller.spent == pytest.approx(1.35 - weight + 0.1 * (action[0] / 1.5 - 1), abs=1e-5)


def test_status(pipe):
    controller = started(pipe, 200.0, risk=RISK)
    step(controller, ONE)
    assert controller.status == "within"
    controller.set_cost_limit(20)
    step(controller, ONE)
    assert controller.status == "tight"
    step(controller, ONE, 21)
    assert controller.status == "overspent"
    controller.reset()
    assert controller.status == "within"


def test_out_of_support():
    pipeline = pipeline_by_hand()
    pipeline.evaluation_critic.support.copy_(torch.tensor([[-1.0, 0.0, -10.0], [1.0, 0.0, 10.0]]))
    pipeline.normalizer.set_statistics(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 1.0]))
    controller = started(pipeline, 200.0, num_envs=6)
    rows = [[5, 0, 0], [7.3, 0.09, 1e6], [2.7, -0.09, -1e6], [7.5, 0, 0], [2.5, 0, 0], [5, 0.11, 0]]
    step(controller, np.array(rows))
    assert controller.status.tolist() == ["within"] * 3 + ["out of support"] * 3


def test_raising_where_nothing_fits(pipe):
    controller = started(pipe, [200.0, 20.0], num_envs=2, on_infeasible="raise")
    before = controller.state_dict()
    with pytest.raises(InfeasibleError, match="No candidate keeps the budget of environment 1") as raised:
        controller.act(TWO)
    assert raised.value.mask.tolist() == [False, True]
    assert controller.state_dict() == before


def test_calling_back_where_nothing_fits(pipe):
    called = []

    def stop(controller, mask):
        called.append((controller.status.tolist(), mask.tolist()))

    step(started(pipe, [200.0, 20.0], num_envs=2, on_infeasible=stop), TWO)
    assert called == [(["within", "tight"], [False, True])]
    step(started(pipe, 200.0, num_envs=2, on_infeasible=stop), TWO)
    assert len(called) == 1


@pytest.mark.parametrize("cost", [1.0, None])
def test_a_controller_goes_on_from_its_state(pipe, cost):
    def play(controller, steps):
        for _ in range(steps):
            step(controller, TWO, [1.0, 2.0], [False, controller.steps[1] == 3])

    first = started(pipe, [30.0, 3.0], num_envs=2, autoreset="next_step", episodes=2)
    play(first, 20)
    first.act(TWO)
    state = json.loads(json.dumps(first.state_dict()))
    again = SafeController(pipe, 1.0, num_envs=2, autoreset="next_step", episodes=2)
    again.load_state_dict(state)
    for controller in (first, again):
        controller.observe(cost)
        play(controller, 20)
    assert again.state_dict() == first.state_dict()
    assert first.scale > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spent": [1.0]}, "spent in the state must be 2 times numbers of at least 0"),
        ({"spent": [1.0, float("nan")]}, "spent in the state must be"),
        ({"steps": [[1], [2, 3]]}, "steps in the state must be 2 times whole numbers"),
        ({"phase": [0, 9]}, "phase in the state must lie below 4"),
        ({"log_scale": float("nan")}, "log_scale must be a finite number"),
        ({"num_envs": 3}, "of a controller with num_envs=3, this one has 2"),
        ({"risk": 0.2}, "of a controller with risk=0.2, this one has 0.05"),
        ({"acted": [True, True]}, "belong together"),
        ({"more": 1}, "A controller's state has the entries"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(pipe, changes, message):
    controller = started(pipe, 20.0, num_envs=2)
    step(controller, TWO, 1)
    before = controller.state_dict()
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict({**before, **changes})
    assert controller.state_dict() == before


def act(observation):
    return lambda controller: controller.act(observation)


def observe(*arguments):
    def call(controller):
        controller.act(TWO)
        before.append(controller.state_dict())
        controller.observe(*arguments)

    before: list[dict] = []
    call.before = before
    return call


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: (c.act(TWO), c.act(TWO)), RuntimeError, "act was called twice in a row"),
        (lambda c: c.observe(1), RuntimeError, "call act first"),
        (act(np.zeros((3, 3))), ValueError, r"shape \(3, 3\), but the controller has 2 environment"),
        (act(ONE), ValueError, "but the controller has 2 environment"),
        (act(np.zeros((2, 4))), ValueError, "this policy takes"),
        (act(np.full((2, 3), np.nan)), ValueError, "observation is NaN or infinite"),
        (act({"state": 1}), ValueError, "observation is a dict"),
        (observe(np.nan), ValueError, "cost must be finite and not negative; got nan"),
        (observe([1, -1]), ValueError, r"cost must be finite and not negative; got \[1, -1\]"),
        (observe(np.inf), ValueError, "cost must be finite"),
        (observe([1, 2, 3]), ValueError, "cost must be a number, or one for each of 2"),
        (observe("1"), ValueError, "cost must be a number"),
        (observe([None, 1.0]), ValueError, "cost must be a number"),
        (observe(1, [True]), ValueError, "ended must be true or false, or 2 of these"),
        (observe(1, 1), ValueError, "ended must be true or false"),
        (lambda c: c.reset([True]), ValueError, "mask must be true or false"),
        (lambda c: c.reset(cost_limit=-1), ValueError, "cost_limit must be finite and not negative"),
        (lambda c: c.set_cost_limit(np.nan), ValueError, "cost_limit must be finite"),
    ],
)
def test_bad_input_changes_nothing(pipe, call, error, message):
    controller = started(pipe, 20.0, num_envs=2)
    before = controller.state_dict()
    with pytest.raises(error, match=message):
        call(controller)
    if hasattr(call, "before"):
        assert controller.state_dict() == call.before[0]
        controller.observe(1)
    elif message.startswith("act was"):
        controller.observe(1)
        assert controller.steps.tolist() == [1, 1]
    else:
        assert controller.state_dict() == before


def test_acting_before_reset_and_observing_twice(pipe):
    controller = pipe.controller(20.0)
    with pytest.raises(RuntimeError, match="the environment has no episode yet: call reset first"):
        controller.act(ONE)
    controller.reset()
    step(controller, ONE, 1)
    with pytest.raises(RuntimeError, match="call act first"):
        controller.observe(1)
    assert controller.spent == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_limit": -1}, "cost_limit must be finite"),
        ({"cost_limit": [1, 2, 3]}, "cost_limit must be a number, or one for each of 2"),
        ({"risk": 0}, "risk must lie above 0"),
        ({"num_envs": 0}, "num_envs must be a whole number"),
        ({"episodes": 1.5}, "episodes must be a whole number"),
        ({"max_episode_steps": 0}, "max_episode_steps must be"),
        ({"autoreset": "later"}, "autoreset must be one of"),
        ({"on_infeasible": "stop"}, "on_infeasible must be None, 'raise' or a function"),
        ({"adapt": "yes"}, "adapt must be true or false"),
    ],
)
def test_bad_arguments(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.controller(**{"cost_limit": 5.0, "num_envs": 2, **options})


def test_a_policy_that_cannot_keep_a_limit_has_no_controller():
    with pytest.raises(ValueError, match="no evaluation critic"):
        make_pipeline(evaluation_critic=None).controller(5.0)


def test_repr(pipe):
    controller = started(pipe, [20.0, 30.0], num_envs=2)
    step(controller, TWO, [1, 31])
    assert repr(controller) == (
        "SafeController(num_envs=2, cost_limit=20 to 30, risk=0.05, spent=1 to 31, steps=1 of 100, "
        "overspent: 1, tight: 1, scale=1, 0 of 0 over)"
    )


def test_a_policy_without_the_package_has_it_too():
    text = pipeline_code().decode()
    assert "class SafeController" in text
    assert "class AdaptiveScale" in text


def test_a_thousand_environments_are_one_call(pipe):
    told = Told(pipe)
    controller = started(told, 20.0, num_envs=1000)
    step(controller, np.zeros((1000, 3)), np.ones(1000))
    assert [count for count, _ in told.calls] == [1000]


def test_it_takes_little_time(pipe):
    """The fastest of many steps, so that other work on the machine does not count; 0.04 ms when idle."""

    class Known(Told):
        def __call__(self, observation, **arguments):
            return output

    output = pipe(ONE, cost_budget=20.0, steps_left=STEPS)
    controller = started(Known(pipe), 20.0)
    fastest = 1.0
    for _ in range(2000):
        begun = time.perf_counter()
        controller.act(ONE)
        controller.observe(0.0, False)
        fastest = min(fastest, time.perf_counter() - begun)
        if controller.steps == STEPS - 1:
            controller.reset()
    assert fastest < 5e-5
