"""With `imitation_share`, the noise model learns other episodes under other safety weights."""

import numpy as np
import torch

from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.algorithms.spi import SPI
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.training.sampler import MemorySampler


def one_state_episodes(episodes=200, length=5):
    """Half of the episodes act with 0.5 and earn and cost 1 a step, half with -0.5 and have neither."""
    rng = np.random.default_rng(0)
    costly = np.repeat(np.arange(episodes) % 2 == 0, length)
    rows = len(costly)
    action = np.where(costly, 0.5, -0.5)[:, None] + 0.02 * rng.normal(size=(rows, 1))
    ends = np.arange(rows) % length == length - 1
    return TransitionDataset.from_columns(
        {
            "observation": rng.normal(size=(rows, 2)).astype(np.float32),
            "next_observation": rng.normal(size=(rows, 2)).astype(np.float32),
            "action": action.astype(np.float32),
            "reward": costly.astype(np.float32),
            "cost": costly.astype(np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": ends,
        }
    )


def sampled_actions(share):
    torch.manual_seed(0)
    # No guidance: what differs between the weights comes from imitation alone.
    config = SPIConfig(eta=1.0, imitation_share=share)
    sizes = {"observation_dim": 2, "action_dim": 1, "hidden_dims": [32, 32], "use_safety_weight": True}
    noise_model = MLPNoiseModel(**sizes)
    critics = TwinCritic(**sizes), TwinCritic(**sizes)
    spi = SPI(config, noise_model, *critics, Compute(), learning_rate=3e-3)
    dataset = one_state_episodes()
    normalizer = ObservationNormalizer(observation_dim=2).fit(dataset.transitions.observation)
    run = TrainConfig(dataset="memory", spi=config, batch_size=128)
    sampler = MemorySampler(run, dataset, normalizer, Units())
    inputs = spi.prepare(sampler.draw())
    for _ in range(600):
        _, inputs = spi.update(inputs, sampler.draw())
    components = spi.policy_components()
    states, generator = torch.randn(200, 2), torch.Generator().manual_seed(0)
    return [
        components["noise_model"].sample(
            components["scheduler"], states, torch.full((200,), weight), None, generator
        )
        for weight in (0.0, 1.0)
    ]


def test_each_weight_imitates_the_episodes_that_it_prefers():
    returns, safety = sampled_actions(share=0.5)
    assert (returns > 0).float().mean() > 0.95
    assert (safety < 0).float().mean() > 0.95


def test_without_it_every_weight_imitates_everything():
    for actions in sampled_actions(share=1.0):
        assert 0.3 < (actions > 0).float().mean() < 0.7
