"""The baselines' policies as modules: what they give when called, and how they take a generator."""

import pytest
import torch

from spi_diffusers.algorithms.config import SPIConfig
from spi_diffusers.algorithms.spi import vp_betas
from spi_diffusers.models import GaussianActor
from spi_diffusers.models.batch_constrained_actor import BatchConstrainedActor
from spi_diffusers.models.diffusion_actor import DiffusionActor


def make_diffusion_actor():
    torch.manual_seed(0)
    config = SPIConfig()
    betas = vp_betas(config.num_train_timesteps, config.beta_min, config.beta_max)
    return DiffusionActor(3, 2, betas, hidden_dims=[8], num_candidates=4)


def test_a_gaussian_actor_gives_its_distribution():
    torch.manual_seed(0)
    actor = GaussianActor(3, 2, hidden_dims=[8])
    observation = torch.randn(5, 3)
    mean, log_std = actor(observation)
    assert mean.shape == log_std.shape == (5, 2)
    assert torch.equal(actor.act(observation), mean.tanh())


def test_a_diffusion_actor_acts_with_one_of_its_candidates():
    actor = make_diffusion_actor()
    observation = torch.randn(6, 3)
    generator = torch.Generator().manual_seed(1)
    candidates, values = actor(observation, torch.randn(5, 24, 2, generator=generator))
    assert (candidates.shape, values.shape) == ((6, 4, 2), (6, 4))
    played = actor.act(observation, torch.Generator().manual_seed(1))
    assert ((candidates - played.unsqueeze(1)).abs().amax(dim=2).amin(dim=1) == 0).all()
    assert torch.equal(played, actor.act(observation, torch.Generator().manual_seed(1)))
    assert played.abs().max() <= 1


def test_the_softmax_is_drawn_from_to_its_last_candidate():
    actor = make_diffusion_actor()
    values = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    counts = torch.bincount(actor.choose(values, torch.Generator().manual_seed(0)), minlength=4)
    torch.testing.assert_close(counts / 20_000, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0)
    certain = torch.tensor([[0.0, 0.0, 0.0, 200.0]]).expand(1000, 4)
    assert (actor.choose(certain) == 3).all()


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latent_clip_must_be_positive(clip):
    with pytest.raises(ValueError, match="latent_clip must be positive and finite"):
        BatchConstrainedActor(3, 2, hidden_dims=[8], latent_clip=clip)
