"""The baselines' policies as modules: what they give when called, and how they take a generator."""

import pytest
import torch

from spi_diffusers.algorithms.losses import vp_betas
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import GaussianActor
from spi_diffusers.models.actors import BatchConstrainedActor, DiffusionActor


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


def make_batch_constrained(selection):
    torch.manual_seed(0)
    options = {"num_candidates": 5, "max_perturbation": 0.5, "latent_clip": 0.4, "selection": selection}
    actor = BatchConstrainedActor(3, 2, hidden_dims=[4], vae_hidden_dim=4, **options)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    actor.multiplier.fill_(0.8)
    return actor, torch.randn(40, 3), torch.randn(40, 5, 4)


def candidates_by_hand(actor, observation, latent):
    """Candidate by candidate, (N, B, A)."""
    clipped = latent.clamp(-0.4, 0.4).unbind(dim=1)
    return torch.stack([actor.perturbation(observation, actor.vae.decode(observation, z)) for z in clipped])


@torch.no_grad()
@pytest.mark.parametrize("selection", ["reward", "lagrangian"])
def test_the_candidate_with_the_best_score_of_its_worst_twins_acts(selection):
    actor, observation, latent = make_batch_constrained(selection)
    candidates = candidates_by_hand(actor, observation, latent)

    def twins(critics):
        return torch.stack(
            [torch.cat([critic(observation, a).values for critic in critics]) for a in candidates]
        )

    reward = twins(actor.reward_critics)
    best = {"reward": reward.amin(dim=1).argmax(dim=0), "no pessimism": reward.mean(dim=1).argmax(dim=0)}
    if selection == "lagrangian":
        cost = twins(actor.cost_critics)
        best["lagrangian"] = (reward.amin(dim=1) - 0.8 * cost.amax(dim=1)).argmax(dim=0)
        best["no pessimism"] = (reward.amin(dim=1) - 0.8 * cost.mean(dim=1)).argmax(dim=0)
    chosen = best.pop(selection)
    torch.testing.assert_close(actor(observation, latent), candidates[chosen, torch.arange(40)])
    assert len(actor.cost_critics) == (2 if selection == "lagrangian" else 0)
    for other in best.values():
        assert (other != chosen).any()


@torch.no_grad()
def test_a_sampled_candidate_is_drawn_by_the_generator():
    actor, observation, latent = make_batch_constrained("sample")
    assert not [*actor.reward_critics, *actor.cost_critics]
    first = candidates_by_hand(actor, observation, latent)[0]
    torch.testing.assert_close(actor(observation, latent), first)
    drawn = torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(1))
    played = actor.act(observation, torch.Generator().manual_seed(1))
    torch.testing.assert_close(played, candidates_by_hand(actor, observation, drawn)[0])
    assert not torch.equal(played, actor.act(observation, torch.Generator().manual_seed(2)))
