"""BCQ-Lag: batch-constrained Q-learning with a Lagrange multiplier on the cost.

Source: Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (2019), with
the PID multiplier and the settings of the DSRL benchmark (Liu et al. 2023). One update, top-down: the VAE
learns the data's actions; the critics learn the value of the best of a few such actions, perturbed; the
multiplier lambda rises while the cost exceeds the threshold; and the perturbation model climbs
Q^r - lambda Q^c.

The multiplier follows the cost of the candidate that acts, in the next states of the batch, or in a start
state where an episode has ended. With `selection="sample"` or `benchmark_targets` it follows the cost of a
perturbed action in the batch's own states: the policy acts with any candidate then, not with a chosen one,
and the benchmark's next cost is that of the costliest candidate.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Batch, Draw, Metrics, PolicySizes
from spi_diffusers.algorithms.constrained import (
    ConstrainedCritics,
    PIDLagrangian,
    batch_vae_loss,
    make_critics,
)
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import BCQLagConfig
from spi_diffusers.models.actors import BatchConstrainedActor


def next_values(
    reward_values: Tensor,
    cost_values: Tensor,
    selection: str,
    multiplier: Tensor | float,
    costliest: bool = False,
) -> tuple[Tensor, Tensor]:
    """Values of the next state: those of the candidate that the policy would take there.

    "reward" takes the candidate with the highest Q^r, so the reward's value is BCQ's maximum over the
    candidates (equation 13); "lagrangian" the one with the highest Q^r - lambda Q^c; "sample" acts with a
    random one, whose cost counts, while the reward's value stays BCQ's maximum.

    Args:
        reward_values: Soft-clipped Q^r of each candidate, shape (B, N).
        cost_values: Soft-clipped Q^c of each candidate, shape (B, N).
        selection: "reward", "lagrangian" or "sample".
        multiplier: lambda.
        costliest: Take the cost of the costliest candidate instead, as the DSRL benchmark's code does.

    Returns:
        Q^r and Q^c of the next state, each of shape (B,).
    """
    score = reward_values
    if selection == "lagrangian":
        score = reward_values - multiplier * cost_values
    best = score.argmax(dim=1, keepdim=True)
    reward = reward_values.gather(1, best).squeeze(1)
    if costliest:
        return reward, cost_values.amax(dim=1)
    if selection == "sample":
        return reward, cost_values[:, 0]
    return reward, cost_values.gather(1, best).squeeze(1)


def perturbation_loss(
    reward_value: Tensor, cost_value: Tensor, multiplier: Tensor | float, threshold: float
) -> Tensor:
    """Mean of -Q^r + lambda (Q^c - threshold) over the batch, the Lagrangian to be minimized.

    Args:
        reward_value: Q^r of the perturbed actions, shape (B,).
        cost_value: Q^c of the perturbed actions, shape (B,).
        multiplier: lambda, detached.
        threshold: Largest discounted cost.
    """
    return (multiplier * (cost_value - threshold) - reward_value).mean()


class BCQLag(Algorithm):
    """BCQ-Lag's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: BCQLagConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        self.actor = BatchConstrainedActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            hidden_dims=list(config.hidden_dims),
            vae_hidden_dim=config.vae_hidden_dim,
            max_perturbation=config.max_perturbation,
            num_candidates=config.num_candidates,
            latent_clip=config.latent_clip,
            critic_pairs=config.critic_pairs,
            selection=config.selection,
        ).to(compute.device)
        # The policy keeps only the critics that it selects by; all of them are trained.
        reward, cost = list(self.actor.reward_critics), list(self.actor.cost_critics)
        if not reward:
            reward = [critic.to(compute.device) for critic in make_critics(config, sizes)]
        if not cost:
            cost = [critic.to(compute.device) for critic in make_critics(config, sizes)]
        self.critics = ConstrainedCritics(config, sizes, compute, reward=reward, cost=cost)
        self.lagrangian = PIDLagrangian(config, compute)
        self._vae = Learner(self.actor.vae, config.learning_rate, compute)
        self._perturbation = Learner(self.actor.perturbation, config.learning_rate, compute, follows=True)
        self.learners = {
            "vae": self._vae,
            "perturbation": self._perturbation,
            "critics": self.critics.learner,
        }
        self.state = {"lagrangian": self.lagrangian}

    @classmethod
    def draws(cls, config: BCQLagConfig, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Latents of size 2 A: for the VAE's loss, for the next states' candidates, and for the batch's."""
        latent = 2 * action_dim
        return {
            "encoding": Draw((batch_size, latent)),
            "next_latent": Draw((batch_size, config.num_candidates, latent)),
            "latent": Draw((batch_size, latent)),
        }

    def next_values(self, batch: Batch, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r and Q^c of the next states (B,), from latents (B, N, L) of N candidates each."""
        config = self.config
        observation = batch.next_observation
        if not config.benchmark_targets:
            # Values of the last states are not backed up, so no critic learns them. The multiplier looks at
            # what the policy does next, which after an end it does in a start state.
            ended = batch.terminated.unsqueeze(1)
            observation = torch.where(ended, batch.initial_observation, observation)
        with torch.no_grad():
            drawn = self._like_data(observation, latent)
            candidates = self._perturbation.target_module(observation, drawn)
            return next_values(
                *self.critics.candidate_values(observation, candidates),
                config.selection,
                self.lagrangian.multiplier,
                costliest=config.benchmark_targets,
            )

    def policy_values(self, batch: Batch, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r and Q^c (B,) of one perturbed action per state, from latents (B, L), for the loss to climb."""
        with torch.no_grad():
            drawn = self._like_data(batch.observation, latent)
        action = self._perturbation.module(batch.observation, drawn)
        return self.critics.policy_values(batch.observation, action)

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        config, threshold = self.config, self.critics.threshold
        loss, metrics = batch_vae_loss(self._vae.module, batch, noise["encoding"], config.kl_weight)
        self._vae.step(loss)

        next_reward, next_cost = self.next_values(batch, noise["next_latent"])
        loss, critic_metrics = self.critics.loss(batch, next_reward, next_cost)
        self.critics.learner.step(loss)

        reward_value, cost_value = self.policy_values(batch, noise["latent"])
        own_states = config.selection == "sample" or config.benchmark_targets
        policy_cost = cost_value.detach() if own_states else next_cost
        multiplier = self.lagrangian.update(policy_cost.mean() - threshold)
        self._perturbation.step(perturbation_loss(reward_value, cost_value, multiplier, threshold))

        self.critics.learner.update_target(config.target_update_rate)
        self._perturbation.update_target(config.target_update_rate)
        return {
            **metrics,
            **critic_metrics,
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": policy_cost.mean(),
            "policy/multiplier": multiplier.clone(),
        }

    def policy_components(self) -> dict[str, Any]:
        """The actor, with the multiplier as it is now."""
        self.actor.multiplier.copy_(self.lagrangian.multiplier)
        return super().policy_components()

    def _like_data(self, observation: Tensor, latent: Tensor) -> Tensor:
        clip = self.config.latent_clip
        return self._vae.module.decode(observation, latent.clamp(-clip, clip))
