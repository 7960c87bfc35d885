"""BCQ-Lag: batch-constrained Q-learning with a Lagrange multiplier on the cost.

Source: Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (2019), with
the PID multiplier and the settings of the DSRL benchmark (Liu et al. 2023). One update, top-down: the VAE
learns the data's actions; the critics learn the value of the best of a few such actions, perturbed; and the
perturbation model climbs Q^r - lambda Q^c.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Batch, Draw, Metrics, PolicySizes
from spi_diffusers.algorithms.constrained import ConstrainedCritics, PIDLagrangian, make_critics, update_vae
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithms import BCQLagConfig
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
        kept = (self.actor.reward_critics, self.actor.cost_critics)
        reward, cost = (
            list(own) or [c.to(compute.device) for c in make_critics(config, sizes)] for own in kept
        )
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

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        metrics = update_vae(self._vae, batch, noise["encoding"], self.config.kl_weight)
        critic_metrics, policy_cost = self._update_critics(batch, noise["next_latent"])
        metrics |= critic_metrics | self._update_perturbation(batch, noise["latent"], policy_cost)
        self.critics.learner.update_target(self.config.target_update_rate)
        self._perturbation.update_target(self.config.target_update_rate)
        return metrics

    def _update_critics(self, batch: Batch, noise: Tensor) -> tuple[Metrics, Tensor]:
        config = self.config
        observation = batch.next_observation
        if not config.benchmark_targets:
            # Values of the last states are not backed up, so no critic learns them. The multiplier looks at
            # what the policy does next, which after an end it does in a start state.
            ended = batch.terminated.unsqueeze(1)
            observation = torch.where(ended, batch.initial_observation, observation)
        with torch.no_grad():
            clip = config.latent_clip
            drawn = self._vae.module.decode(observation, noise.clamp(-clip, clip))
            candidates = self._perturbation.target_module(observation, drawn)
            reward_value, cost_value = next_values(
                *self.critics.candidate_values(observation, candidates),
                config.selection,
                self.lagrangian.multiplier,
                costliest=config.benchmark_targets,
            )
        return self.critics.update(batch, reward_value, cost_value), cost_value

    def _update_perturbation(self, batch: Batch, noise: Tensor, policy_cost: Tensor) -> Metrics:
        clip = self.config.latent_clip
        with torch.no_grad():
            drawn = self._vae.module.decode(batch.observation, noise.clamp(-clip, clip))
        action = self._perturbation.module(batch.observation, drawn)
        reward_value, cost_value = self.critics.policy_values(batch.observation, action)
        if self.config.selection == "sample" or self.config.benchmark_targets:
            # The policy acts with any candidate, not with a chosen one; and the benchmark's code looks at the
            # action of the perturbation model, as the next state's cost is that of its costliest candidate.
            policy_cost = cost_value.detach()
        multiplier = self.lagrangian.update(policy_cost.mean() - self.critics.threshold)
        self.actor.multiplier.copy_(multiplier)
        self._perturbation.step(
            perturbation_loss(reward_value, cost_value, multiplier, self.critics.threshold)
        )
        return {
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": policy_cost.mean(),
            "policy/multiplier": multiplier.clone(),
        }

    def refresh(self) -> None:
        """Bring copies of the weights, and the actor's multiplier, up to date."""
        super().refresh()
        self.actor.multiplier.copy_(self.lagrangian.multiplier)
