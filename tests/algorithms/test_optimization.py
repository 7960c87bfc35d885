"""Clipping and Adam give torch's own results, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.networks import FusedAdam, clip_gradients


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
