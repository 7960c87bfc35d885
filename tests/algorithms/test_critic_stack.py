"""Several critics computed as one network: the same values, the same memory, the same gradients."""

import copy

import pytest
import torch

from spi_diffusers.algorithms.networks import CriticStack
from spi_diffusers.models import TwinCritic


def make_critics(*heads, seed=0, **options):
    torch.manual_seed(seed)
    return [
        TwinCritic(**({"observation_dim": 3, "action_dim": 2, "hidden_dims": [16, 8]} | options), num_heads=h)
        for h in heads
    ]


def inputs(rows=7):
    torch.manual_seed(1)
    return torch.randn(rows, 3), torch.randn(rows, 2), torch.rand(rows)


def side_by_side(observation, action, weight):
    return torch.cat([observation, action, weight.unsqueeze(1)], dim=1)


def assert_stack_equals(stack, critics):
    arguments = inputs()
    values = stack(side_by_side(*arguments))
    most = max(critic.config.num_heads for critic in critics)
    assert values.shape == (len(critics), 2, 7, most)
    for index, critic in enumerate(critics):
        heads = critic.config.num_heads
        torch.testing.assert_close(values[index, :, :, :heads], critic(*arguments).values)
        assert (values[index, :, :, heads:] == 0).all(), "a missing head is zero"


@pytest.mark.parametrize("heads", [(1,), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3, 2)])
def test_the_stack_equals_the_separate_critics(heads):
    critics = make_critics(*heads)
    before = [critic(*inputs()).values.clone() for critic in critics]
    assert_stack_equals(CriticStack(critics), critics)
    for critic, values in zip(critics, before, strict=True):
        assert torch.equal(critic(*inputs()).values, values), "stacking changes no value"


def test_memory_is_shared_both_ways():
    critics = make_critics(1, 2)
    stack = CriticStack(critics)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(1.5)
    assert_stack_equals(stack, critics)
    with torch.no_grad():
        for parameter in critics[1].parameters():
            parameter.add_(0.1)
    assert_stack_equals(stack, critics)


def test_loading_into_the_stack_or_into_a_critic_keeps_them_together():
    critics, others = make_critics(1, 2), make_critics(1, 2, seed=5)
    stack, other_stack = CriticStack(critics), CriticStack(others)
    stack.load_state_dict(other_stack.state_dict())
    assert_stack_equals(stack, critics)
    assert torch.equal(critics[1](*inputs()).values, others[1](*inputs()).values)

    fresh = make_critics(1, 2, seed=9)
    critics[0].load_state_dict(fresh[0].state_dict())
    critics[1].load_state_dict(fresh[1].state_dict())
    assert_stack_equals(stack, critics)
    torch.testing.assert_close(critics[0](*inputs()).values, fresh[0](*inputs()).values)


def test_a_copy_of_the_stack_is_independent():
    critics = make_critics(1, 2)
    stack = CriticStack(critics)
    before = stack(side_by_side(*inputs())).clone()
    copied = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    assert torch.equal(copied(side_by_side(*inputs())), before)


def test_gradients_are_those_of_the_separate_critics():
    critics, apart = make_critics(1, 2), make_critics(1, 2)
    stack = CriticStack(critics)
    values = stack(side_by_side(*inputs()))
    (values[0, :, :, 0].square().sum() + (values[1, :, :, :2] - 1).square().sum()).backward()
    (apart[0](*inputs()).values.square().sum() + (apart[1](*inputs()).values - 1).square().sum()).backward()
    for stacked, first, second in zip(stack.parameters(), *(c.parameters() for c in apart), strict=True):
        torch.testing.assert_close(stacked.grad[:2, :, : first.shape[2]], first.grad)
        torch.testing.assert_close(stacked.grad[2:], second.grad)
    last = stack.net[-1]
    assert (last.weight.grad[:2, :, 1:] == 0).all(), "padding receives no gradient"
    assert (last.bias.grad[:2, :, 1:] == 0).all()


def test_padding_stays_zero_under_training():
    critics = make_critics(1, 2)
    stack = CriticStack(critics)
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.1)
    for _ in range(5):
        values = stack(side_by_side(*inputs()))
        (values[0, :, :, 0] + values[1].sum(-1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_stack_equals(stack, critics)


def test_critics_in_a_stack_are_saved_as_they_are(tmp_path):
    critics = make_critics(1, 2)
    stack = CriticStack(critics)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(0.5)
    for index, critic in enumerate(critics):
        critic.save_pretrained(str(tmp_path / str(index)))
        loaded = TwinCritic.from_pretrained(str(tmp_path / str(index)))
        assert torch.equal(loaded(*inputs()).values, critic(*inputs()).values)


def test_critics_of_different_architectures_are_refused():
    narrow, wide = make_critics(1)[0], make_critics(1, hidden_dims=[32, 8])[0]
    with pytest.raises(ValueError, match="hidden_dims"):
        CriticStack([narrow, wide])
    deep = make_critics(1, hidden_dims=[16, 8, 8])[0]
    with pytest.raises(ValueError, match="hidden_dims"):
        CriticStack([narrow, deep])


def test_critics_with_different_activations_are_refused():
    silu, relu = make_critics(1)[0], make_critics(1, activation="relu")[0]
    with pytest.raises(ValueError, match="activation"):
        CriticStack([silu, relu])
