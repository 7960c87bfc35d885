"""Training does not depend on the units that rewards, costs and observations are logged in."""

import functools
import tempfile

import numpy as np
import pytest
import torch

from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.training.build import build_units
from spi_diffusers.training.export import add_evaluation_critic
from spi_diffusers.training.trainer import Trainer

EPISODES, LENGTH = 30, 20
STATES = torch.tensor([[0.3, 1e5 - 0.7, -1.2], [-0.9, 1e5 + 1.1, 0.1], [0.0, 1e5, 2.0]])


def make_data(k: float = 1.0, cost: float = 1.0) -> TransitionDataset:
    """Episodes with rewards, costs and the first observation in units of 1 / k; a step costs 0 to `cost`."""
    rng = np.random.default_rng(0)
    rows = EPISODES * LENGTH
    observation = rng.normal((0.0, 1e5, 0.0), size=(rows + 1, 3))
    action = rng.uniform(-1.0, 1.0, size=(rows, 2))
    # As the data is stored, before the change of units: it shall round once only.
    costs = np.maximum(action[:, 0] + observation[:-1, 0], 0.0).astype(np.float32) * cost
    rewards = (action[:, 1] + 0.3 * observation[:-1, 2]).astype(np.float32)
    observation = observation.astype(np.float32) * np.array([k, 1.0, 1.0])
    return TransitionDataset.from_columns(
        {
            "observation": observation[:-1].astype(np.float32),
            "next_observation": observation[1:].astype(np.float32),
            "action": action.astype(np.float32),
            "reward": (rewards * k).astype(np.float32),
            "cost": (costs * k).astype(np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": np.arange(rows) % LENGTH == LENGTH - 1,
        }
    )


@functools.cache
def trained(k: float = 1.0, cost: float = 1.0, precision: str = "no"):
    with tempfile.TemporaryDirectory() as folder:
        config = make_train_config(
            {
                "dataset": "memory",
                "output_dir": folder,
                "updates": 30,
                "batch_size": 64,
                "learning_rate": 3e-3,
                "device": "cpu",
                "threads": 1,
                "mixed_precision": precision,
                "network.hidden_dims": [32, 32],
                "network.time_embed_dim": 8,
            }
        )
        trainer = Trainer(config, make_data(k, cost), progress=False)
        trainer.train()
        policy = trainer.policy()
        add_evaluation_critic(policy, trainer, progress=False)
        return policy


def act(policy, k: float, limit: float):
    states = STATES * torch.tensor([k, 1.0, 1.0])
    return policy(states, cost_limit=limit * k)


@pytest.mark.parametrize("limit", [0.04, 0.1, 10.0])
@pytest.mark.parametrize("k", [1e-3, 0.37, 1e4])
def test_units_do_not_change_the_policy(k, limit):
    expected, actual = act(trained(), 1.0, limit), act(trained(k), k, limit)
    torch.testing.assert_close(actual.candidates, expected.candidates, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.expected_returns / k, expected.expected_returns, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.expected_costs / k, expected.expected_costs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.cost_bounds / k, expected.cost_bounds, atol=1e-4, rtol=1e-4)
    assert torch.equal(actual.chosen, expected.chosen)


@pytest.mark.parametrize("k", [2.0**-10, 2.0**13])
def test_units_that_round_nothing_change_no_bit(k):
    expected, actual = act(trained(), 1.0, 10.0), act(trained(k), k, 10.0)
    assert torch.equal(actual.candidates, expected.candidates)
    assert torch.equal(actual.expected_costs, expected.expected_costs * k)
    assert torch.equal(actual.cost_bounds, expected.cost_bounds * k)


@pytest.mark.parametrize("k", [1e-3, 1e4])
def test_in_bfloat16_they_change_it_by_rounding(k):
    expected, actual = (act(trained(scale, precision="bf16"), scale, 10.0) for scale in (1.0, k))
    torch.testing.assert_close(actual.candidates, expected.candidates, atol=0.05, rtol=0)


@pytest.mark.parametrize("cost", [0.003, 5000.0])
def test_the_predicted_cost_is_in_the_units_of_the_data(cost):
    """However large costs are, they are learned as fast, and limits part the candidates alike."""
    bounds = act(trained(), 1.0, 10.0).cost_bounds.unique()
    limit = float(bounds[len(bounds) // 2 :][:2].mean())  # between two, so that rounding does not decide
    one, other = act(trained(), 1.0, limit), act(trained(cost=cost), 1.0, limit * cost)
    torch.testing.assert_close(other.expected_costs / cost, one.expected_costs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.cost_bounds / cost, one.cost_bounds, atol=1e-4, rtol=1e-4)
    assert torch.equal(other.feasible, one.feasible)
    fits = one.cost_bounds <= limit
    assert torch.equal(other.cost_bounds <= limit * cost, fits)
    assert 0 < int(fits.sum()) < fits.numel()


def test_observations_far_from_zero_matter_in_bfloat16():
    policy = trained(precision="bf16")
    near = policy(STATES[:1], cost_limit=10.0)
    far = policy(STATES[:1] + torch.tensor([0.0, 1.0, 0.0]), cost_limit=10.0)
    assert (near.candidates - far.candidates).abs().max() > 1e-2


def test_baselines_learn_from_costs_as_they_are_logged():
    data = make_data(k=7.0)
    configs = [
        make_train_config({"dataset": "memory", "algorithm": name, **more})
        for name, more in (("spi", {}), ("bc", {}), ("cpq", {"cost_limit": 5.0}))
    ]
    assert [build_units(config, data) for config in configs] == [Units.of(data), Units(), Units()]
    assert Units.of(data).cost > 3.0
