"""CAPS's policy: which head acts."""

import pytest
import torch

from spi_diffusers.models import SwitchingActor


def make_actor(monkeypatch, reward, cost, **options):
    actor = SwitchingActor(observation_dim=1, action_dim=1, hidden_dims=[4], num_heads=3, **options)
    actions = torch.tensor([[[-0.5], [0.0], [0.5]]])
    monkeypatch.setattr(
        actor, "forward", lambda observation: (actions, torch.tensor([reward]), torch.tensor([cost]))
    )
    return actor


@pytest.mark.parametrize(
    ("budget", "chosen"), [(10.0, -0.5), (4.0, 0.0), (2.0, 0.5), (0.5, 0.5), (-9.0, 0.5)]
)
def test_the_best_head_that_fits_acts_and_else_the_safest(monkeypatch, budget, chosen):
    """At gamma 0 the threshold is the budget of one step: all fit 10, two fit 4, one fits 2, none less."""
    actor = make_actor(monkeypatch, [3.0, 2.0, 1.0], [5.0, 3.0, 1.0], gamma=0.0)
    action = actor.act(torch.zeros(1, 1), torch.tensor([budget]), torch.ones(1))
    assert action.item() == chosen


def test_a_budget_is_discounted_as_spent_evenly():
    actor = SwitchingActor(observation_dim=1, action_dim=1, hidden_dims=[4], gamma=0.5)
    budget, steps = torch.tensor([6.0, 6.0, -1.0]), torch.tensor([1.0, 3.0, 3.0])
    assert actor.threshold(budget, steps).tolist() == [6.0, 2.0 * (1 + 0.5 + 0.25), 0.0]


def test_values_are_the_cautious_twins_of_each_heads_action():
    torch.manual_seed(0)
    actor, observation = SwitchingActor(3, 2, num_heads=3, hidden_dims=[4]), torch.randn(5, 3)
    actions, reward, cost = actor(observation)
    assert (actions.shape, reward.shape) == ((5, 3, 2), (5, 3))
    for head in range(3):
        twins = actor.reward_critic(observation, actions[:, head]).values
        torch.testing.assert_close(reward[:, head], torch.minimum(*twins))
        twins = actor.cost_critic(observation, actions[:, head]).values
        torch.testing.assert_close(cost[:, head], torch.maximum(*twins))


@pytest.mark.parametrize("options", [{"num_heads": 1}, {"gamma": 1.0}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        SwitchingActor(observation_dim=1, action_dim=1, hidden_dims=[4], **options)
