"""Critics side by side, copies of networks, Adam and clipping: the machinery gives what plain torch gives."""

import copy

import pytest
import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.networks import (
    Compute,
    ComputeReplica,
    CriticStack,
    FusedAdam,
    Learner,
    clip_gradients,
    frozen_copy,
    polyak_update,
)
from spi_diffusers.models import TwinCritic

# ---- critics side by side


def make_critics(count=2, seed=0, **options):
    torch.manual_seed(seed)
    settings = {"observation_dim": 3, "action_dim": 2, "hidden_dims": [16, 8]} | options
    return [TwinCritic(**settings) for _ in range(count)]


def inputs(rows=7):
    torch.manual_seed(1)
    return torch.randn(rows, 3), torch.randn(rows, 2), torch.rand(rows)


def side_by_side(observation, action, weight):
    return torch.cat([observation, action, weight.unsqueeze(1)], dim=1)


def assert_stack_equals(stack, critics):
    arguments = inputs()
    values = stack(side_by_side(*arguments))
    assert values.shape == (len(critics), 2, 7)
    for index, critic in enumerate(critics):
        torch.testing.assert_close(values[index], critic(*arguments).values)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_stack_equals_the_separate_critics(count):
    critics = make_critics(count)
    before = [critic(*inputs()).values.clone() for critic in critics]
    assert_stack_equals(CriticStack(critics), critics)
    for critic, values in zip(critics, before, strict=True):
        assert torch.equal(critic(*inputs()).values, values), "stacking changes no value"


def test_memory_is_shared_both_ways():
    critics = make_critics()
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
    critics, others = make_critics(), make_critics(seed=5)
    stack, other_stack = CriticStack(critics), CriticStack(others)
    stack.load_state_dict(other_stack.state_dict())
    assert_stack_equals(stack, critics)
    assert torch.equal(critics[1](*inputs()).values, others[1](*inputs()).values)

    fresh = make_critics(seed=9)
    critics[0].load_state_dict(fresh[0].state_dict())
    critics[1].load_state_dict(fresh[1].state_dict())
    assert_stack_equals(stack, critics)
    torch.testing.assert_close(critics[0](*inputs()).values, fresh[0](*inputs()).values)


def test_a_copy_of_the_stack_is_independent():
    critics = make_critics()
    stack = CriticStack(critics)
    before = stack(side_by_side(*inputs())).clone()
    copied = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    assert torch.equal(copied(side_by_side(*inputs())), before)


def test_gradients_are_those_of_the_separate_critics():
    critics, apart = make_critics(), make_critics()
    stack = CriticStack(critics)
    values = stack(side_by_side(*inputs()))
    (values[0].square().sum() + (values[1] - 1).square().sum()).backward()
    (apart[0](*inputs()).values.square().sum() + (apart[1](*inputs()).values - 1).square().sum()).backward()
    for stacked, first, second in zip(stack.parameters(), *(c.parameters() for c in apart), strict=True):
        torch.testing.assert_close(stacked.grad[:2], first.grad)
        torch.testing.assert_close(stacked.grad[2:], second.grad)


def test_critics_in_a_stack_are_saved_as_they_are(tmp_path):
    critics = make_critics()
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


# ---- copies of a network


def test_polyak_by_hand():
    target, source = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    polyak_update([target], [source], 0.25)
    assert target.tolist() == [1.5, 1.5]
    assert source.tolist() == [3.0, 0.0]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 3.0)])
def test_polyak_at_its_ends(rate, expected):
    target = torch.tensor([1.0])
    polyak_update([target], [torch.tensor([3.0])], rate)
    assert target.item() == expected


def test_a_frozen_copy_is_independent_and_takes_no_gradient():
    master = nn.Linear(2, 2)
    copy = frozen_copy(master)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in master.parameters())
    with torch.no_grad():
        master.weight.zero_()
    assert copy.weight.abs().sum() > 0


def test_a_trainable_float32_replica_is_the_master():
    master = nn.Linear(2, 2)
    assert ComputeReplica(master, torch.float32, trainable=True).module is master


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_replica_changes_only_when_it_is_refreshed(dtype):
    master = nn.Linear(2, 2)
    replica = ComputeReplica(master, dtype, trainable=False)
    before = replica.module.weight.clone()
    with torch.no_grad():
        master.weight.add_(1.0)
    assert torch.equal(replica.module.weight, before)
    replica.refresh()
    assert torch.equal(replica.module.weight, master.weight.to(dtype))
    assert master.weight.dtype == torch.float32
    assert not replica.module.weight.requires_grad


def test_gradients_are_handed_over_in_the_masters_dtype():
    master = nn.Linear(2, 1, bias=False)
    replica = ComputeReplica(master, torch.bfloat16, trainable=True)
    replica.module(torch.tensor([[2.0, -3.0]], dtype=torch.bfloat16)).sum().backward()
    assert master.weight.grad is None
    replica.hand_over_gradients()
    assert master.weight.grad.dtype == torch.float32
    assert master.weight.grad.tolist() == [[2.0, -3.0]]
    assert replica.module.weight.grad is None


# ---- Adam and clipping


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 3))


def set_gradients(module: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_is_torchs(scale: float) -> None:
    ours, reference = network(), network()
    set_gradients(ours, 0, scale)
    set_gradients(reference, 0, scale)
    clip_gradients(list(ours.parameters()), 10.0)
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 10.0, foreach=True)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_clipping_by_hand_leaves_out_what_has_no_gradient() -> None:
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    clip_gradients([first, second, third], 1.0)
    torch.testing.assert_close(first.grad, torch.tensor([0.6]))
    torch.testing.assert_close(second.grad, torch.tensor([0.8]))
    assert third.grad is None


def test_steps_are_torchs_with_a_changing_rate_missing_gradients_and_a_reload() -> None:
    ours, reference = network(), network()
    mine = FusedAdam(ours.parameters(), lr=1e-2)
    theirs = torch.optim.Adam(reference.parameters(), lr=1e-2, fused=True)
    for step in range(12):
        for module, optimizer in ((ours, mine), (reference, theirs)):
            set_gradients(module, step)
            if step in (0, 6):
                module[0].bias.grad = None
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            (optimizer.fused_step if optimizer is mine else optimizer.step)()
        if step == 8:  # as a resumed run does it
            state = copy.deepcopy(mine.state_dict())
            mine = FusedAdam(ours.parameters(), lr=1.0)
            mine.load_state_dict(state)
        assert torch.equal(weights(ours), weights(reference)), step
    for mine_state, their_state in zip(mine.state.values(), theirs.state.values(), strict=True):
        for slot in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(mine_state[slot], their_state[slot])


def test_a_loaded_state_is_the_one_that_is_stepped() -> None:
    module = network()
    optimizer = FusedAdam(module.parameters(), lr=1e-2)
    for step in range(3):
        set_gradients(module, step)
        optimizer.fused_step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    set_gradients(module, 3)
    optimizer.fused_step()
    assert [float(state["step"]) for state in optimizer.state.values()] == [4.0] * 4


# ---- a network in training


def test_a_learners_step_changes_nothing_else_that_the_loss_went_through():
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(2, 2) for _ in range(2))
    learner = Learner(first, 1e-2, Compute(), follows=True)
    before = [value.clone() for value in (first.weight, second.weight)]
    target = learner.target.weight.clone()
    learner.step(second(first(torch.ones(1, 2))).sum())
    assert not torch.equal(first.weight, before[0])
    assert torch.equal(second.weight, before[1])
    assert second.weight.grad is None
    learner.update_target(0.5)
    torch.testing.assert_close(learner.target.weight, 0.5 * target + 0.5 * first.weight)
