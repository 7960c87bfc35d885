"""What the controller refuses, with nothing changed, and its state."""

import json

import numpy as np
import pytest
from controller_factory import ONE, TWO, started, step
from pipeline_factory import make_pipeline

from spi_diffusers.pipelines import SafeController


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
