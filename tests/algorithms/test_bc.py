"""BC: its loss by hand, one update, and that it recovers a policy that made the data."""

import pytest
import torch

from spi_diffusers.algorithms.base import Batch, BatchAndNoise, PolicySizes
from spi_diffusers.algorithms.bc import BC, imitation_loss
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithm_settings import BCConfig


def make_batch(size=64, seed=0):
    """Actions are tanh of a fixed linear map of the observation."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(size, 3, generator=generator)
    action = torch.tanh(observation @ torch.tensor([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3]]))
    zeros = torch.zeros(size)
    false = torch.zeros(size, dtype=torch.bool)
    return Batch(observation, observation, action, zeros, zeros, false, false, observation)


def make_bc(**options):
    torch.manual_seed(0)
    return BC(BCConfig(hidden_dims=[32, 32], **options), PolicySizes(3, 2, 100, 10.0), Compute())


def test_imitation_loss_by_hand():
    predicted = torch.tensor([[0.5, 0.0], [1.0, -1.0]])
    action = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert imitation_loss(predicted, action).item() == pytest.approx((0.25 + 4.0) / 4)


def test_bc_recovers_the_policy_of_the_data():
    bc = make_bc()
    for step in range(400):
        bc.learn(make_batch(seed=step), {})
    held_out = make_batch(seed=10_000)
    assert imitation_loss(bc.actor.act(held_out.observation), held_out.action).item() < 2e-3


def test_one_update_is_a_step_of_adam_on_the_loss():
    bc, batch = make_bc(learning_rate=1e-2), make_batch()
    reference = [parameter.detach().clone().requires_grad_() for parameter in bc.actor.parameters()]
    names = [name for name, _ in bc.actor.named_parameters()]
    optimizer = torch.optim.Adam(reference, lr=1e-2)
    predicted = torch.func.functional_call(
        bc.actor, dict(zip(names, reference, strict=True)), batch.observation
    )
    imitation_loss(predicted, batch.action).backward()
    optimizer.step()
    metrics = bc.learn(batch, {})
    torch.testing.assert_close(list(bc.actor.parameters()), reference)
    assert metrics["policy/imitation_loss"].item() == pytest.approx(
        imitation_loss(predicted, batch.action).item()
    )


def test_inputs_survive_as_named_tensors():
    inputs = BatchAndNoise(make_batch(), {"latent": torch.randn(64, 4)})
    again = BatchAndNoise.from_tensors(inputs.tensors())
    assert again.tensors().keys() == inputs.tensors().keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in inputs.tensors().items())


def test_an_update_is_counted_and_passes_the_next_inputs_on():
    training = make_bc()
    first, second = BatchAndNoise(make_batch(), {}), BatchAndNoise(make_batch(seed=1), {})
    _, ready = training.update(training.prepare(first), second)
    assert ready is second
    assert training.updates == 1


def test_config_refuses_what_cannot_be():
    for changes, message in (({"hidden_dims": []}, "hidden_dims"), ({"learning_rate": 0.0}, "learning_rate")):
        with pytest.raises(ValueError, match=message):
            BCConfig(**changes)
