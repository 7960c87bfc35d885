"""How the controller acts: actions, estimates, status, where nothing fits, and its speed."""

import time

import numpy as np
import pytest
import torch
from controller_factory import ONE, TWO, Told, started, step
from pipeline_factory import STEPS, make_pipeline, pipeline_by_hand

from spi_diffusers.pipelines import InfeasibleError
from spi_diffusers.pipelines.saving import pipeline_code

RISK = 0.5


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
    pipeline.evaluation_critic.observed_range.copy_(torch.tensor([[-1.0, 0.0, -10.0], [1.0, 0.0, 10.0]]))
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
    """Beside a decision; the fastest of many, so that other work on the machine does not count."""

    def fastest(call):
        times = []
        for _ in range(500):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        return min(times)

    class Known(Told):
        def __call__(self, observation, **arguments):
            return output

    output = pipe(ONE, cost_budget=20.0, steps_left=STEPS)
    controller = started(Known(pipe), 20.0)

    def count():
        controller.act(ONE)
        controller.observe(0.0, controller.steps == STEPS - 1)
        if controller.steps == STEPS:
            controller.reset()

    decision = fastest(lambda: pipe(ONE, cost_budget=20.0, steps_left=STEPS))
    assert fastest(count) < 0.15 * decision
