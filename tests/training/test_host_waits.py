"""Between two logs, training reads nothing from its device: the host would wait for all that a GPU has to do.

Tensors on torch's "meta" device have a shape and no values. So whatever asks for one fails there: `item`,
`if`, `nonzero`, a boolean mask as an index, a copy to the CPU. All else runs as it does on a GPU, backward
passes included, and a tensor that was left on the CPU shows.
"""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_factory import tiny_config

from spi_diffusers.config.algorithms import ALGORITHMS
from spi_diffusers.training.trainer import Trainer

META = torch.device("meta")


class WaitError(AssertionError):
    """An operation that makes the host wait, of which the meta device does not complain."""


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of the CPU and of the device together, and copies from one to the other.

    Tensors without dimensions are left out if others have some: on a GPU, a number may be on the CPU.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs), result)
        )
        devices = {v.device for v in given if v.dim()} or {v.device for v in given}
        if devices and len(devices | {v.device for v in made}) > 1:
            raise WaitError(f"{func} has tensors on {devices}, gives some on {made[0].device}")
        if "index_put" in str(func) and any(v.dtype == torch.bool for v in args[1] if v is not None):
            raise WaitError(f"{func} by a mask")
        return result


class NoNumbersOfTheHost(TorchFunctionMode):
    """Refuses to copy the host's numbers to the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        makes = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device == META
        if makes and not isinstance(args[-1], torch.Tensor):
            raise WaitError(f"{func.__name__} copies {args[-1]} to the device")
        return result


@contextlib.contextmanager
def no_waits():
    with OneDevice(), NoNumbersOfTheHost():
        yield


@pytest.fixture
def _on_meta(monkeypatch):
    monkeypatch.setattr(Accelerator, "device", META)
    # Adam's fused step works there; its check of the parameters does not know it.
    monkeypatch.setitem(
        torch.optim.Adam._init_group.__globals__, "_device_dtype_check_for_fused", lambda _: None
    )


def meta_trainer(folder, dataset, algorithm="spi", **settings):
    settings |= {"device": "auto", "mixed_precision": "bf16", "algorithm": algorithm}
    return Trainer(tiny_config(folder, **settings), dataset, progress=False)


@pytest.mark.usefixtures("_on_meta")
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        *((name, {}) for name in ALGORITHMS),
        ("spi", {"spi.guidance": "chain", "network.activation": "mish"}),
        ("spi", {"spi.next_action": "dataset", "spi.imitation_share": 1.0}),
        ("bcq-lag", {"bcq_lag.benchmark_targets": True}),
        ("bear-lag", {"bear_lag.benchmark_targets": True, "bear_lag.alpha_optimizer": "sgd"}),
        ("coptidice", {"coptidice.benchmark_targets": True}),
    ],
)
def test_updates_do_not_wait(small_dataset, tmp_path, algorithm, settings):
    trainer = meta_trainer(tmp_path, small_dataset, algorithm, **settings)
    inputs = trainer.algorithm.prepare(trainer.sampler.draw())
    for update in range(3):
        upcoming = trainer.sampler.draw()
        # What stays the same is copied in the first update.
        with no_waits() if update else contextlib.nullcontext():
            metrics, inputs = trainer.algorithm.update(inputs, upcoming)
    assert {value.device for value in (*metrics.values(), *inputs.tensors().values())} == {META}
    for name, tensor in trainer.algorithm.modules().items():
        assert {value.device for value in tensor.state_dict().values()} == {META}, name


@pytest.mark.usefixtures("_on_meta")
def test_the_trainer_reads_metrics_where_it_logs_them(small_dataset, tmp_path):
    trainer = meta_trainer(tmp_path, small_dataset, log_every=7, checkpoint_every=100)
    with pytest.raises(NotImplementedError, match="no data"):
        trainer.train()
    assert trainer.step == 7


class ReadBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.sum().item()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x[0] if x[0] > 0 else None,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x[torch.zeros((), dtype=torch.int64, device=META)],
        lambda x: torch.equal(x, x),
        lambda x: x.index_put_((x > 0,), x[0]),
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3, 3) @ x,
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.ones(3).to(META),
        lambda x: torch.tensor([1.0, 2.0, 3.0], device=META),
        lambda x: x.new_tensor(1.0),
        lambda x: ReadBackwards.apply(x.requires_grad_()).sum().backward(),
    ],
)
def test_what_waits_is_noticed(wait):
    with pytest.raises((RuntimeError, WaitError)), no_waits():
        wait(torch.empty(3, device=META))
    with no_waits():
        torch.empty(3, device=META) * torch.tensor(2.0)  # what goes along does not wait


@pytest.mark.usefixtures("_on_meta")
def test_cpq_waits_for_the_number_of_actions_outside_the_data_only(small_dataset, tmp_path):
    trainer = meta_trainer(tmp_path, small_dataset, "cpq", **{"cpq.ood_penalty": True})
    inputs = trainer.sampler.draw()
    with pytest.raises(NotImplementedError, match="nonzero"):
        trainer.algorithm.update(inputs, inputs)


@pytest.mark.parametrize("algorithm", ["spi", "coptidice"])
def test_batches_are_sent_from_pinned_memory_without_waiting(small_dataset, tmp_path, algorithm, monkeypatch):
    config = tiny_config(tmp_path, algorithm=algorithm)
    expected, sampler = (Trainer(config, small_dataset, progress=False).sampler for _ in range(2))
    sampler._device = torch.device("cuda")
    pinned = []

    def to(self, device, non_blocking=False):
        assert (device.type, non_blocking) == ("cuda", True)
        assert self is pinned[-1]
        return self

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
        patch.setattr(torch.Tensor, "to", to)
        drawn = sampler.draw().tensors()
    for name, value in expected.draw().tensors().items():
        assert torch.equal(drawn[name], value), name
    starts = "initial_observation" in sampler._columns_needed
    assert (
        len(pinned) == len(sampler.draws) + 1 + starts
    )  # and the rows of transitions and first observations
