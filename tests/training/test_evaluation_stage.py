"""The stage after training: what the evaluation critic learns, on worlds whose values can be worked out."""

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import EvaluationCritic, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.models.evaluation_critic import NUM_LEVELS
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training import evaluation_stage
from spi_diffusers.training.evaluation_stage import fit_evaluation_critic, learn_residuals

diffusers_logging.disable_progress_bar()


def make_policy(horizon: int | None, hidden: int = 32) -> SPIPolicyPipeline:
    """Random actions: here they change nothing."""
    torch.manual_seed(0)
    shared = {"observation_dim": 1, "action_dim": 1, "hidden_dims": [hidden, hidden]}
    normalizer = ObservationNormalizer(observation_dim=1)
    normalizer.set_statistics(torch.zeros(1), torch.ones(1))
    return SPIPolicyPipeline(
        noise_model=MLPNoiseModel(**shared),
        reward_critic=TwinCritic(**shared),
        safety_critic=TwinCritic(**shared),
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        max_episode_steps=horizon,
    )


def steady_world(cost: float, end: float, rows: int = 4000, scale: float = 1.0) -> TransitionDataset:
    """Every step costs `cost` with a probability of a half and earns 1, times `scale`; ends with `end`."""
    rng = np.random.default_rng(0)
    terminated = rng.random(rows) < end
    states = rng.normal(size=(rows + 1, 1))
    return TransitionDataset.from_columns(
        {
            "observation": states[:-1],
            "action": rng.uniform(-1, 1, (rows, 1)),
            "reward": np.full(rows, scale),
            "cost": scale * cost * (rng.random(rows) < 0.5),
            "next_observation": states[1:],
            "terminated": terminated,
            "truncated": ~terminated & (np.arange(rows) == rows - 1),
        }
    )


def predict(critic, steps: int) -> tuple[float, float]:
    """Return and cost over steps, averaged over states and actions."""
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(200, 1, generator=generator)
    action = torch.rand(200, 1, generator=generator) * 2 - 1
    with torch.no_grad():
        rates = critic(
            state, action, torch.full((200,), 0.5), torch.full((200,), float(steps)), return_dict=False
        )
    return tuple(float(value.mean()) * steps for value in rates)


def test_it_knows_where_the_data_was():
    dataset = steady_world(1.0, 0.1, rows=300)
    policy = make_policy(10)
    policy.normalizer.set_statistics(torch.tensor([1.0]), torch.tensor([2.0]))
    critic = fit_evaluation_critic(policy, dataset, updates=1, progress=False)
    seen = dataset.transitions.observation
    expected = torch.stack([(seen.min(0).values - 1) / 2, (seen.max(0).values - 1) / 2])
    torch.testing.assert_close(critic.observed_range, expected)


def test_a_rare_cost_counts_whatever_the_sample_holds():
    """One update learns from 256 / 11 transitions, so from one of the episodes."""
    cost = np.zeros(400)
    cost[123], worth = 5.0, np.full(400, 2.0)
    ends = {"terminated": np.arange(400) % 10 == 9, "truncated": np.zeros(400, dtype=bool)}
    states = np.zeros((400, 1))
    columns = {"observation": states, "next_observation": states, "action": states, "reward": worth}
    dataset = TransitionDataset.from_columns({**columns, "cost": cost, **ends})
    critic = fit_evaluation_critic(make_policy(10), dataset, updates=1, progress=False)
    assert (critic.config.cost_high, critic.config.cost_unit) == (5.0, 5.0)
    assert critic.config.cost_mean == pytest.approx(5 / 400)
    assert critic.config.reward_range == [0.0, 2.0]


def test_every_safety_weight_goes_on_by_its_own_action():
    dataset, policy = steady_world(1.0, 0.1, rows=50), make_policy(10)
    with torch.no_grad():  # small weights in place of actions at the end of their range
        for weight in policy.noise_model.parameters():
            weight.mul_(0.3)
    policy.noise_model.net[0].weight.data.mul_(10.0)
    data = evaluation_stage._Data(policy, dataset)
    batch = data.draw(10, torch.Generator().manual_seed(0))
    expected = evaluation_stage.policy_action(policy, batch.next_observation, batch.safety_weight)
    torch.testing.assert_close(batch.next_action, expected)
    assert len(batch.safety_weight.unique()) == 11
    assert batch.next_action.std() > 0


# ---- what is expected


@pytest.mark.parametrize("end", [0.0, 0.2], ids=["truncated", "terminated"])
def test_what_is_to_come_over_the_steps_left(end):
    """With an end of 0.2 at every step, 12 steps hold what (1 - 0.8^12) / 0.2 = 4.7 steps do."""
    critic = fit_evaluation_critic(make_policy(12), steady_world(2.0, end), updates=1200, progress=False)
    for steps in (1, 4, 12):
        expected = steps if end == 0 else (1 - (1 - end) ** steps) / end
        reward, cost = predict(critic, steps)
        assert reward == pytest.approx(expected, rel=0.15)
        assert cost == pytest.approx(expected, rel=0.25)  # 2 in half of the steps


@pytest.mark.parametrize("scale", [1e-3, 0.37, 1e4])
def test_units_of_the_data_do_not_matter(scale):
    """Residuals are the same numbers: they are multiples of the cost's own size."""
    fitted = []
    for k in (1.0, scale):
        data, policy = steady_world(0.3, 0.1, scale=k), make_policy(10)
        policy.register_modules(
            evaluation_critic=fit_evaluation_critic(policy, data, updates=40, progress=False)
        )
        learn_residuals(policy, data)
        fitted.append(policy.evaluation_critic)
    first, other = fitted
    for steps in (1, 10):
        np.testing.assert_allclose(predict(other, steps), scale * np.array(predict(first, steps)), rtol=1e-3)
    assert first.residuals.abs().amax() > 0.5
    torch.testing.assert_close(other.residuals, first.residuals, rtol=1e-2, atol=1e-2)
    cost, weight, steps = torch.tensor([0.0, 1.5]), torch.full((2,), 0.5), torch.full((2,), 7.0)
    bounds = [
        critic.cost_bound(k * cost[:, None], weight, steps, 0.1) / k
        for critic, k in ((first, 1.0), (other, scale))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-2, atol=1e-2)


def test_the_same_seed_gives_the_same_critic_and_leaves_the_global_generator_alone():
    data, policy = steady_world(1.0, 0.1), make_policy(10)
    state = torch.get_rng_state()
    first, again, other = (
        fit_evaluation_critic(policy, data, updates=3, seed=seed, progress=False).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_data_without_costs_predicts_none():
    critic = fit_evaluation_critic(make_policy(10), steady_world(0.0, 0.1), updates=2, progress=False)
    assert predict(critic, 10)[1] == 0.0


def test_a_policy_that_does_not_know_its_horizon_is_refused():
    with pytest.raises(ValueError, match="knows max_episode_steps"):
        fit_evaluation_critic(make_policy(None), steady_world(1.0, 0.1), updates=1, progress=False)


# ---- by how much it is off

HORIZON = 8
#: To 1 to 8 steps left, these are the nearest of the numbers that residuals are kept for: log h / log 8 * 12.
KNOTS = {1: 0, 2: 4, 3: 6, 4: 8, 5: 9, 6: 10, 7: 11, 8: 12}


def knowing_policy(rate: float, by_weight: float = 0.0, cost_unit: float = 1.0) -> SPIPolicyPipeline:
    """At a safety weight w it expects a cost of `rate + by_weight * w` per step, and a reward of 0."""
    policy = make_policy(HORIZON, hidden=4)
    critic = EvaluationCritic(1, 1, HORIZON, [0.0, 0.0], 100.0, cost_unit=cost_unit, hidden_dims=[])
    with torch.no_grad():
        weight, bias = critic.net[0].weight.zero_(), critic.net[0].bias.zero_()
        weight[1, 2], bias[1] = by_weight / 2, rate + by_weight / 2  # the input is 2 w - 1
    policy.register_modules(evaluation_critic=critic)
    return policy


def episodes(costs, length: int = HORIZON, ends: bool = False) -> TransitionDataset:
    """An episode for each of the costs (E,) or (E, length) of its steps."""
    costs = np.broadcast_to(np.asarray(costs, dtype=float).reshape(len(costs), -1), (len(costs), length))
    last = np.arange(costs.size) % length == length - 1
    states = np.random.default_rng(0).normal(size=(2, costs.size, 1))
    return TransitionDataset.from_columns(
        {
            "observation": states[0],
            "action": np.zeros((costs.size, 1)),
            "reward": np.zeros(costs.size),
            "cost": costs.ravel(),
            "next_observation": states[1],
            "terminated": last & ends,
            "truncated": last & (not ends),
        }
    )


def learned(policy: SPIPolicyPipeline, data: TransitionDataset, **options) -> EvaluationCritic:
    learn_residuals(policy, data, **options)
    return policy.evaluation_critic


def bounds(critic, steps, expected, risk=0.05, weight=0.5) -> list[float]:
    steps, expected = (torch.as_tensor(value, dtype=torch.float32) for value in (steps, expected))
    bound = critic.cost_bound(expected.unsqueeze(1), torch.full_like(steps, weight), steps, risk)
    return bound.flatten().tolist()


def test_half_of_a_steady_cost_is_missed():
    """Each of h steps costs 1 and leaves 1/2, at all levels: h / 2 in multiples of sqrt(u (h / 2 + u))."""
    critic = learned(knowing_policy(0.5, cost_unit=2.0), episodes([1.0, 1.0, 1.0]))
    for steps, knot in KNOTS.items():
        expected = 0.5 * steps / (2 * (0.5 * steps + 2)) ** 0.5
        torch.testing.assert_close(critic.residuals[:, knot], torch.full((11, NUM_LEVELS), expected))
    for risk in (0.01, 0.5, 0.99):
        assert bounds(critic, [1, 2, 4, 8], [0.5, 1, 2, 4], risk) == pytest.approx([1, 2, 4, 8], rel=1e-5)


def test_where_no_episode_has_so_many_steps_left_the_nearest_count():
    critic = learned(knowing_policy(0.5), episodes([1.0] * 50))
    assert torch.equal(critic.residuals[0, 1], critic.residuals[0, 0])
    assert torch.equal(critic.residuals[0, 3], critic.residuals[0, 4])
    # As near to one as to two steps: as many of one as of the other.
    assert torch.equal(critic.residuals[0, 2, :31], critic.residuals[0, 0, :31])
    assert torch.equal(critic.residuals[0, 2, 33:], critic.residuals[0, 4, 33:])


def test_levels_are_shares_of_the_episodes():
    """A quarter costs 3 a step, the others nothing; 1 is expected."""
    critic = learned(knowing_policy(1.0), episodes([3.0] * 100 + [0.0] * 300))
    assert bounds(critic, [8, 1], [8, 1], risk=0.2) == pytest.approx([24, 3], rel=1e-5)
    assert bounds(critic, [8, 1], [8, 1], risk=0.3) == pytest.approx([8, 1], rel=1e-5)


def test_each_safety_weight_has_residuals_of_its_own():
    """At w it expects w a step, and misses 1 - w."""
    critic = learned(knowing_policy(0.0, by_weight=1.0), episodes([1.0, 1.0]))
    for index, weight in enumerate(evaluation_stage.SAFETY_WEIGHT_GRID):
        expected = 8 * (1 - weight) / (8 * weight + 1) ** 0.5
        assert critic.residuals[index, 12].tolist() == pytest.approx([expected] * NUM_LEVELS, abs=1e-5)


def test_costs_count_from_each_step_to_the_end():
    """All of it comes in the last step: none is expected, and 1 comes, from wherever one looks."""
    critic = learned(knowing_policy(0.0), episodes([[0.0] * 7 + [1.0]] * 4))
    assert bounds(critic, range(1, 9), [0.0] * 8) == pytest.approx([1.0] * 8)
    first = learned(knowing_policy(0.0), episodes([[1.0] + [0.0] * 7] * 4))
    assert bounds(first, [8, 4, 1], [0.0] * 3) == pytest.approx([1.0, 0.0, 0.0])


def test_after_an_end_nothing_costs_and_after_a_cut_nothing_is_known():
    """Six of 8 steps cost 1, and 1/2 is expected of each: with 4 left, two come and two do not."""
    ended, cut = (learned(knowing_policy(0.5), episodes([1.0] * 4, 6, ends)) for ends in (True, False))
    assert bounds(ended, [8, 4], [4.0, 2.0]) == pytest.approx([6.0, 2.0])
    assert bounds(cut, [8, 4], [4.0, 2.0]) == pytest.approx([7.0, 3.0])


def test_steps_beyond_the_longest_episode_do_not_count():
    long = episodes([[1.0] * 8 + [50.0] * 4] * 3, 12)
    expected = learned(knowing_policy(0.5), episodes([1.0] * 3)).residuals
    torch.testing.assert_close(learned(knowing_policy(0.5), long).residuals, expected)


@pytest.mark.parametrize("risk", [0.05, 0.2, 0.5])
def test_as_many_unseen_episodes_exceed_the_bound_as_the_risk_says(risk):
    rng = np.random.default_rng(0)
    costs = rng.exponential(size=(2000, HORIZON))
    critic = learned(knowing_policy(1.0), episodes(costs[:1000]))
    for steps in (8, 3):
        ahead = costs[1000:, HORIZON - steps :].sum(axis=1)
        (limit,) = bounds(critic, [steps], [float(steps)], risk)
        assert (ahead > limit).mean() == pytest.approx(risk, abs=0.25 * risk + 0.01)


def test_residuals_repeat_and_leave_the_global_generator_alone(monkeypatch):
    data = episodes(np.random.default_rng(0).random((40, HORIZON)))
    policy = knowing_policy(0.5)
    state = torch.get_rng_state()
    whole = learned(policy, data).residuals.clone()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(learned(policy, data, seed=1).residuals, whole), "all episodes, in whatever order"
    monkeypatch.setattr(evaluation_stage, "RESIDUAL_TRANSITIONS", 80)
    first, again, other = (learned(policy, data, seed=seed).residuals.clone() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, whole)
    monkeypatch.setattr(evaluation_stage, "RESIDUAL_TRANSITIONS", 1)
    assert learned(policy, data).residuals.isfinite().all(), "one episode at least"


def test_residuals_that_are_not_finite_are_refused():
    policy = knowing_policy(0.5)
    with torch.no_grad():
        policy.evaluation_critic.net[0].bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"residuals at safety weight 0\.0 are not finite"):
        learn_residuals(policy, episodes([1.0]))
