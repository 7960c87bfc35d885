"""CDT's transformer: what each of its answers depends on."""

import pytest
import torch

from spi_diffusers.models import DecisionTransformer


def make_actor(**options):
    torch.manual_seed(0)
    settings = {"context": 4, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, **options}
    actor = DecisionTransformer(observation_dim=3, action_dim=2, max_episode_steps=5, **settings).eval()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return actor


def make_inputs(batch=1, steps=4):
    generator = torch.Generator().manual_seed(1)
    return {
        "observation": torch.randn(batch, steps, 3, generator=generator),
        "action": torch.randn(batch, steps, 2, generator=generator),
        "return_to_go": torch.randn(batch, steps, generator=generator),
        "cost_to_go": torch.randn(batch, steps, generator=generator),
        "step": torch.arange(steps).expand(batch, -1).clone(),
    }


@pytest.mark.parametrize("name", ["return_to_go", "cost_to_go", "observation", "action", "step"])
def test_an_action_depends_on_the_steps_before_and_on_all_of_its_own_but_itself(name):
    """Token order and causal mask: return, cost and observation come before the action, cost after it."""
    actor, inputs = make_actor(), make_inputs()
    before = actor(**inputs)
    inputs[name][:, 2] += 1
    changed = [
        (now != then).flatten(2).any(2) if now.dim() == 3 else now != then
        for now, then in zip(actor(**inputs), before, strict=True)
    ]
    actions = [False, False, name != "action", True]
    assert [part[0].tolist() for part in changed] == [actions, actions, [False, False, True, True]]


def test_later_steps_than_the_last_count_as_the_last():
    actor, inputs = make_actor(), make_inputs()
    inputs["step"] += 1
    expected = actor.act(**inputs)
    inputs["step"][:, 3] = 100
    assert torch.equal(actor.act(**inputs), expected)
    assert expected.abs().max() <= 1


def test_returns_and_costs_count_in_their_scales():
    inputs = make_inputs()
    expected = make_actor().act(**inputs)
    scaled = make_actor(return_scale=10.0, cost_scale=2.0)
    torch.testing.assert_close(
        scaled.act(
            **inputs | {"return_to_go": 10 * inputs["return_to_go"], "cost_to_go": 2 * inputs["cost_to_go"]}
        ),
        expected,
    )


def test_one_that_is_not_stochastic_gives_no_deviation():
    mean, log_std, costly = make_actor(stochastic=False)(**make_inputs(batch=3))
    assert (mean.shape, log_std, costly.shape) == ((3, 4, 2), None, (3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide embedding_dim"),
        ({"context": 0}, "All sizes must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"cost_scale": 0.0}, "Scales must be positive and finite, got 1.0 and 0.0"),
        ({"frontier_costs": [], "frontier_returns": []}, "must have a number at least, and rise"),
        ({"frontier_costs": [1.0, 1.0], "frontier_returns": [0.0, 1.0]}, "and rise"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_actor(**options)
