"""Small real SPI instances and the inputs of their updates."""

import torch

from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.algorithms.spi import SPI, StepInputs
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import MLPNoiseModel, TwinCritic

O, A = 3, 2  # noqa: E741 - sizes of observation and action


def fixed_weights(eta=0.5, mu=0.25, phi=0.25, **options) -> SPIConfig:
    """The paper's SPI."""
    return SPIConfig(conditioned=False, eta=eta, mu=mu, phi=phi, **options)


def make_networks(config: SPIConfig, seed=0, hidden_dims=(24, 24), **sizes):
    torch.manual_seed(seed)
    shared = {"observation_dim": O, "action_dim": A, "hidden_dims": list(hidden_dims)} | sizes
    shared["use_safety_weight"] = config.conditioned
    return (
        MLPNoiseModel(**shared, time_embed_dim=8),
        TwinCritic(**shared),
        TwinCritic(**shared),
    )


def make_spi(
    config: SPIConfig | None = None,
    compute: Compute | None = None,
    *,
    seed=0,
    hidden_dims=(24, 24),
    **options,
) -> SPI:
    config = config or SPIConfig()
    return SPI(config, *make_networks(config, seed, hidden_dims), compute or Compute(), **options)


def make_inputs(config: SPIConfig, seed=0, batch=16, **changes) -> StepInputs:
    generator = torch.Generator().manual_seed(1000 + seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    steps = config.num_train_timesteps
    fields = {
        "observation": normal(batch, O),
        "next_observation": normal(batch, O),
        "action": normal(batch, A).clamp(-1, 1),
        "reward": normal(batch),
        "cost": (normal(batch) > 0.5).float(),
        "terminated": normal(batch) > 1.0,
        "safety_weight": torch.rand(batch, generator=generator),
        "timestep": torch.randint(steps, (batch,), generator=generator),
        "noise": normal(batch, A),
        "chain_noise": normal(steps, batch, A),
        "guidance_noise": normal(steps if config.guidance == "chain" else 0, batch, A),
        "twin": torch.randint(2, (), generator=generator),
    }
    if config.next_action == "dataset":
        fields["next_action"] = normal(batch, A).clamp(-1, 1)
    return StepInputs(**(fields | changes))


def train(spi: SPI, updates: int, **changes) -> list[dict[str, float]]:
    """Some updates on made-up batches; returns the metrics of each."""
    config, history = spi.config, []
    inputs = spi.prepare(make_inputs(config, 0, **changes))
    for step in range(updates):
        metrics, inputs = spi.update(inputs, make_inputs(config, step + 1, **changes))
        history.append({name: float(value) for name, value in metrics.items()})
    return history


def weights_of(spi: SPI) -> dict[str, torch.Tensor]:
    modules = {
        "noise_model": spi.noise_model,
        "ema_noise_model": spi.ema_noise_model,
        "critics": spi.critics,
        "target_critics": spi.target_critics,
    }
    return {
        f"{name}/{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in first.items() if not torch.equal(value, second[name])]
