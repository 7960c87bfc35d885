import pytest
import torch
from torch import nn

from spi_diffusers.algorithms.networks import ComputeReplica, frozen_copy, polyak_update


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
