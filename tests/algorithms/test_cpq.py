"""CPQ: its losses by hand, and what it learns where the best action is known."""

import pytest
import torch
from one_state_task import train

from spi_diffusers.algorithms.base import PolicySizes
from spi_diffusers.algorithms.cpq import CPQ, constrained_value, ood_penalty, outside_data
from spi_diffusers.algorithms.cpq_config import CPQConfig


def test_values_and_penalty_by_hand():
    reward, cost = torch.tensor([2.0, 4.0, -1.0]), torch.tensor([1.0, 3.0, 2.0])
    assert constrained_value(reward, cost, 2.0).tolist() == [2.0, 0.0, -1.0]
    values = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])  # means 2 and 1
    assert ood_penalty(values, 0.5, 4.0).item() == pytest.approx(-0.5 * (-2.0 - 3.0))
    assert ood_penalty(values, 0.5, 1.5).item() == pytest.approx(-0.5 * (0.0 - 0.5))  # 2 is above already


def test_actions_that_diverge_more_than_recorded_ones_are_outside_the_data():
    recorded = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])  # its median is 0.2
    divergence = torch.tensor([0.1, 0.9, 0.2, 0.21, 0.0])
    assert outside_data(divergence, recorded, 0.5).tolist() == [1, 3]
    assert outside_data(divergence, recorded, 1.0).tolist() == [1]
    assert outside_data(recorded, recorded, 1.0).tolist() == []


@pytest.mark.parametrize("penalty", [False, True])
def test_cpq_climbs_the_reward_and_sees_where_it_breaks_the_limit(penalty):
    config = CPQConfig(
        hidden_dims=[32, 32],
        vae_hidden_dim=32,
        gamma=0.0,
        reward_scale=1.0,
        learning_rate=3e-3,
        actor_learning_rate=3e-4,
        ood_penalty=penalty,
    )
    free, metrics = train(CPQ, config, cost_limit=1.2, updates=600)
    assert free.mean() > 0.4
    if penalty:
        # Actions outside the data are learned to cost one and a half times the limit, not hundreds.
        assert 1.2 < metrics["critic/ood_cost_value"] < 2.4
        assert 0 <= metrics["critic/ood_share"] <= 1
    # The costly action breaks a lower limit. CPQ climbs up to there all the same, and has no gradient beyond.
    _, metrics = train(CPQ, config, cost_limit=0.3, updates=600)
    assert metrics["policy/cost_value"] > 0.3
    assert metrics["policy/share_within"] < 0.1


def test_without_the_penalty_there_is_no_vae():
    sizes = PolicySizes(2, 1, 1, 1.0)
    with_it, without = (CPQ(CPQConfig(ood_penalty=penalty), sizes) for penalty in (True, False))
    assert with_it.modules().keys() - without.modules().keys() == {"vae", "log_alpha"}
    assert with_it.optimizers().keys() - without.optimizers().keys() == {"vae"}
    shapes = [CPQ.noise_shapes(cpq.config, 8, 1).keys() for cpq in (with_it, without)]
    assert shapes[0] - shapes[1] == {"encoding", "tested_action"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ood_quantile": 1.5}, "ood_quantile must lie in"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate must be positive"),
        ({"hidden_dims": []}, "hidden_dims must be"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CPQConfig(**settings)
