"""The stage after training: what the evaluation critic learns, on worlds whose values can be worked out."""

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.evaluation_stage import HUBER_WIDTH, fit_evaluation_critic, quantile_loss

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


def predict(critic, steps: int) -> tuple[float, float, float]:
    """Return, mean cost and 0.9 quantile of the cost over steps, averaged over states and actions."""
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(200, 1, generator=generator)
    action = torch.rand(200, 1, generator=generator) * 2 - 1
    with torch.no_grad():
        reward, costs = critic(
            state, action, torch.full((200,), 0.5), torch.full((200,), float(steps)), return_dict=False
        )
    upper = costs.sort(dim=1).values[:, 28]  # at (28 + 0.5) / 32 = 0.89
    return tuple(float(value.mean()) * steps for value in (reward, costs, upper))


def test_quantile_loss_by_hand():
    """Levels 1/4 and 3/4; errors of 1 are linear, |e| - 0.05; those of 0.02 square, 5 e^2."""
    assert HUBER_WIDTH == 0.1
    error = torch.tensor([[[1.0, -1.0], [0.02, -0.02]]])
    first = 0.25 * 0.95 + 0.75 * 0.95
    second = (0.75 + 0.25) * 0.002
    assert float(quantile_loss(error)) == pytest.approx((first + second) / 4)


def test_the_median_of_a_distribution_has_the_least_quantile_loss():
    targets = torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0])
    losses = {
        value: float(quantile_loss((targets - value).view(1, 1, -1))) for value in (0.0, 1.0, 2.0, 3.0, 11.2)
    }
    assert min(losses, key=losses.get) == 2.0


@pytest.mark.parametrize("end", [0.0, 0.2], ids=["truncated", "terminated"])
def test_what_is_to_come_over_the_steps_left(end):
    """With an end of 0.2 at every step, 12 steps hold what (1 - 0.8^12) / 0.2 = 4.7 steps do."""
    critic = fit_evaluation_critic(make_policy(12), steady_world(2.0, end), updates=1200, progress=False)
    for steps in (1, 4, 12):
        expected = steps if end == 0 else (1 - (1 - end) ** steps) / end
        reward, cost, upper = predict(critic, steps)
        assert reward == pytest.approx(expected, rel=0.15)
        assert cost == pytest.approx(expected, rel=0.25)  # 2 in half of the steps
        assert upper > cost


@pytest.mark.parametrize("scale", [1e-3, 0.37, 1e4])
def test_units_of_the_data_do_not_matter(scale):
    fitted = [
        fit_evaluation_critic(make_policy(10), steady_world(0.3, 0.1, scale=k), updates=40, progress=False)
        for k in (1.0, scale)
    ]
    for steps in (1, 10):
        expected, found = (np.array(predict(critic, steps)) for critic in fitted)
        np.testing.assert_allclose(found, scale * expected, rtol=1e-3)


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
    assert predict(critic, 10)[1:] == (0.0, 0.0)


def test_a_policy_that_does_not_know_its_horizon_is_refused():
    with pytest.raises(ValueError, match="knows max_episode_steps"):
        fit_evaluation_critic(make_policy(None), steady_world(1.0, 0.1), updates=1, progress=False)
