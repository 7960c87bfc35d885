"""A policy of two costs, whose critic can be worked out by hand: limits of both are kept."""

import json

import numpy as np
import pytest
import torch
from controller_factory import Told, started, step
from pipeline_factory import evaluation_critic_by_hand, make_evaluation_critic, make_pipeline

from spi_diffusers.models.evaluation_critic import NUM_LEVELS
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID

NAMES = ["speed", "energy"]
STATE = np.zeros(3, np.float32)


@pytest.fixture
def pipe() -> SPIPolicyPipeline:
    """Costs 1.35 - w and 100 (1 - w / 2) a step, known exactly; earns 1 - w."""
    several = {"cost_high": [10.0, 1000.0], "cost_mean": [1.0, 100.0], "cost_unit": [1.0, 100.0]}
    critic, one = (
        make_evaluation_critic(hidden_dims=[], cost_names=NAMES, **several),
        evaluation_critic_by_hand(),
    )
    with torch.no_grad():
        critic.net[0].weight.zero_()[:2] = one.net[0].weight
        critic.net[0].bias.zero_()[:2] = one.net[0].bias
        critic.net[0].weight[2, 5], critic.net[0].bias[2] = -0.25, 0.75  # the input is 2 w - 1
    return make_pipeline(evaluation_critic=critic)


def chosen_weight(output) -> float:
    return float(output.safety_weights[0, output.chosen[0]])


@pytest.mark.parametrize(
    ("budget", "weight"),
    [
        ([7.6, 1000.0], 0.6),  # 10 steps: 7.5 fits, 8.5 does not
        ([99.0, 751.0], 0.5),
        ([7.6, 751.0], 0.6),
        ([9.6, 651.0], 0.7),
        ([99.0, 400.0], 1.0),  # nothing fits: the safest acts
    ],
)
def test_the_weight_whose_costs_all_fit_acts(pipe, budget, weight):
    output = pipe(STATE, cost_budget=budget, steps_left=10)
    assert chosen_weight(output) == pytest.approx(weight)
    expected = [[10 * (1.35 - w), 1000 * (1 - w / 2)] for w in SAFETY_WEIGHT_GRID]
    torch.testing.assert_close(output.expected_costs[0], torch.tensor(expected))
    assert output.cost_bounds.shape == (1, 11, 2)
    assert output.feasible.shape == (1, 11)


def test_each_cost_gets_half_of_the_risk(pipe):
    """Every step has half the risk of 0.5, and each of two costs half of that: the level of 1 - 1/8."""
    pipe.evaluation_critic.residuals.copy_((torch.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS)
    output = pipe(STATE, cost_budget=[9.0, 9.0], steps_left=10, risk=0.5)
    costs, units = output.expected_costs[0], torch.tensor([1.0, 100.0])
    torch.testing.assert_close(output.cost_bounds[0], costs + 0.875 * (units * (costs + units)).sqrt())


def test_the_forms_of_a_limit(pipe):
    batch = np.zeros((2, 3), np.float32)
    wanted = pipe(batch, cost_limit=[76.0, 7600.0])
    forms = [
        np.array([[76.0, 7600.0]] * 2),
        {"speed": 76.0, "energy": 7600.0},
        {"energy": [7600.0, 7600.0], "speed": 76},
        torch.tensor([76.0, 7600.0]),
    ]
    for form in forms:
        assert torch.equal(pipe(batch, cost_limit=form).chosen, wanted.chosen)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (20.0, r"cost_limit has shape \(\); pass 2 numbers, of the costs speed, energy"),
        ([1.0, 2.0, 3.0], r"shape \(3,\); pass 2 numbers"),
        ({"speed": 1.0}, "must name the costs speed, energy, got"),
        ({"speed": 1.0, "energy": float("nan")}, r"cost_limit\['energy'\] is NaN"),
        ([1.0, float("inf")], "NaN or infinite"),
        ([1.0, -1.0], "must not be negative"),
    ],
)
def test_limits_of_other_costs_are_refused(pipe, limit, message):
    with pytest.raises(ValueError, match=message):
        pipe(STATE, cost_limit=limit)


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = SPIPolicyPipeline.from_pretrained(tmp_path)
    assert loaded.cost_names == ("speed", "energy")
    how = {"cost_budget": [7.6, 900.0], "steps_left": 10}
    assert torch.equal(loaded(STATE, **how).expected_costs, pipe(STATE, **how).expected_costs)


def test_a_policy_of_one_cost_that_knows_no_names_loads_and_acts_the_same(tmp_path):
    """As policies were saved before there were several costs."""
    one = make_pipeline()
    one.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads((tmp_path / "model_index.json").read_text()).items()
                if k != "_sha256"
            }
        )
    )
    config = tmp_path / "evaluation_critic" / "config.json"
    settings = json.loads(config.read_text())
    assert settings.pop("cost_names") is None
    config.write_text(json.dumps(settings))
    loaded = SPIPolicyPipeline.from_pretrained(tmp_path)
    assert loaded.cost_names == ("cost",)
    assert loaded.evaluation_critic.residuals.shape == (11, 13, NUM_LEVELS)
    outputs = [policy(STATE, cost_budget=5.0, steps_left=9) for policy in (one, loaded)]
    assert torch.equal(outputs[0].cost_bounds, outputs[1].cost_bounds)
    assert outputs[0].actions.tolist() == outputs[1].actions.tolist()


# ---- the controller


def test_each_cost_is_counted(pipe):
    told = Told(pipe)
    controller = started(told, [20.0, 3000.0])
    step(controller, STATE, cost=[1.0, 70.0])
    step(controller, STATE, cost={"energy": 90.0, "speed": 0.0})
    assert (controller.spent.tolist(), controller.cost_limit.tolist()) == ([1.0, 160.0], [20.0, 3000.0])
    controller.act(STATE)
    np.testing.assert_allclose(told.last[0], [[19.0, 2840.0]])
    assert controller.status == "tight"
    assert "cost_limit=20, 3000" in repr(controller)


def test_an_episode_over_any_limit_is_over(pipe):
    controller = started(pipe, np.array([[20.0, 3000.0]] * 3), num_envs=3)
    costs = np.array([[20.0, 3000.0], [20.5, 0.0], [0.0, 3001.0]])
    step(controller, np.zeros((3, 3)), cost=costs, ended=[True, True, True])
    assert (controller.finished, controller.exceeded) == (3, 2)
    assert controller.status.tolist()[1:] == ["overspent", "overspent"]
    assert controller.scale > 1


def test_costs_that_nobody_reports_are_estimated(pipe):
    controller = started(pipe, [99.0, 9900.0])
    step(controller, STATE, cost=None)
    np.testing.assert_allclose(controller.spent, [0.95, 80.0], rtol=1e-6)  # of w = 0.4
    assert controller.cost_source == "estimated"


def test_a_limit_is_changed_on_the_way_and_the_state_goes_on(pipe):
    controller = started(pipe, {"speed": 20.0, "energy": 3000.0}, num_envs=2, episodes=2)
    step(controller, np.zeros((2, 3)), cost=[[1.0, 70.0], [2.0, 80.0]], ended=[False, True])
    controller.reset(mask=[False, True])
    assert controller.spent.tolist() == [[1.0, 70.0], [2.0, 80.0]]
    controller.set_cost_limit([10.0, 100.0])
    with pytest.raises(ValueError, match="cost_limit 75 is below what environment 1 spent, 80"):
        controller.set_cost_limit([10.0, 75.0])
    state = json.loads(json.dumps(controller.state_dict()))
    other = started(pipe, [1.0, 1.0], num_envs=2, episodes=2)
    other.load_state_dict(state)
    assert other.cost_limit.tolist() == [[10.0, 100.0]] * 2
    assert other.state_dict() == state


@pytest.mark.parametrize("cost", [1.0, [1.0], {"speed": 1.0}, [1.0, -1.0], [[1.0, 2.0]] * 3])
def test_other_costs_are_refused_and_nothing_changes(pipe, cost):
    controller = started(pipe, [20.0, 3000.0], num_envs=2)
    controller.act(np.zeros((2, 3)))
    before = controller.state_dict()
    with pytest.raises(ValueError, match=r"cost must|cost\["):
        controller.observe(cost)
    assert controller.state_dict() == before
