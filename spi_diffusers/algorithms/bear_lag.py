"""BEAR-Lag: bootstrapping error accumulation reduction with a Lagrange multiplier on the cost.

Source: Kumar, Fu, Tucker and Levine, "Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction"
(2019), with the PID multiplier and the settings of the DSRL benchmark (Liu et al. 2023). One update,
top-down: a VAE learns the data's actions; the critics learn the value of the policy's actions; and the policy
climbs Q^r - lambda Q^c while it keeps within the support of the VAE's actions, which a second multiplier,
alpha, enforces.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from spi_diffusers.algorithms.base import Algorithm, Batch, Draw, Metrics, PolicySizes
from spi_diffusers.algorithms.constrained import (
    ConstrainedCritics,
    LogAlpha,
    PIDLagrangian,
    batch_vae_loss,
    make_critics,
    mmd,
)
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import BEARLagConfig
from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.actors import GaussianActor


def actor_loss(
    reward_value: Tensor,
    cost_value: Tensor,
    discrepancy: Tensor,
    log_alpha: Tensor,
    multiplier: Tensor | float,
    cost_threshold: float,
    mmd_threshold: float,
    reward_weight: float = 1.0,
) -> Tensor:
    """Mean of -Q^r + lambda (Q^c - cost threshold) + alpha (MMD - MMD threshold) over the batch.

    Args:
        reward_value: Q^r of the policy's actions, shape (B,).
        cost_value: Q^c of the policy's actions, shape (B,).
        discrepancy: MMD between policy and VAE in each state, shape (B,).
        log_alpha: Logarithm of alpha, scalar; it gets no gradient.
        multiplier: lambda, detached.
        cost_threshold: Largest discounted cost.
        mmd_threshold: Largest discrepancy.
        reward_weight: 0 while the policy is only brought to the support.
    """
    constraints = multiplier * (cost_value - cost_threshold)
    constraints = constraints + log_alpha.detach().exp() * (discrepancy - mmd_threshold)
    return (constraints - reward_weight * reward_value).mean()


def alpha_loss(log_alpha: Tensor, discrepancy: Tensor, mmd_threshold: float) -> Tensor:
    """-alpha * mean(MMD - MMD threshold): its descent is alpha's dual ascent.

    Args:
        log_alpha: Logarithm of alpha, scalar.
        discrepancy: Shape (B,), or its mean; it gets no gradient.
        mmd_threshold: Largest discrepancy.
    """
    return -log_alpha.exp() * (discrepancy.detach().mean() - mmd_threshold)


def next_values(reward_values: Tensor, cost_values: Tensor, costliest: bool = False) -> tuple[Tensor, Tensor]:
    """Values of the next state, from several actions that the policy draws there.

    The reward's is the best action's (BEAR's equation for the target), the cost's is the policy's mean.

    Args:
        reward_values: Soft-clipped Q^r of each action, shape (B, N).
        cost_values: Soft-clipped Q^c of each action, shape (B, N).
        costliest: Take the cost of the costliest action instead, as the DSRL benchmark's code does.

    Returns:
        Q^r and Q^c of the next state, each of shape (B,).
    """
    cost = cost_values.amax(dim=1) if costliest else cost_values.mean(dim=1)
    return reward_values.amax(dim=1), cost


class BEARLag(Algorithm):
    """BEAR-Lag's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: BEARLagConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        dims: dict[str, Any] = {"observation_dim": sizes.observation_dim, "action_dim": sizes.action_dim}
        hidden = {"hidden_dims": list(config.hidden_dims)}
        self.vae = ActionVAE(**dims, hidden_dim=config.vae_hidden_dim).to(compute.device)
        self.actor = GaussianActor(**dims, **hidden).to(compute.device)
        reward, cost = ([c.to(compute.device) for c in make_critics(config, sizes)] for _ in range(2))
        self.critics = ConstrainedCritics(config, sizes, compute, reward=reward, cost=cost)
        self.lagrangian = PIDLagrangian(config, compute)
        self.log_alpha = LogAlpha().to(compute.device)
        climb: Any = Adam if config.alpha_optimizer == "adam" else SGD
        self._alpha_optimizer: Optimizer = climb(self.log_alpha.parameters(), lr=config.alpha_learning_rate)
        self._vae = Learner(self.vae, config.learning_rate, compute)
        self._actor = Learner(self.actor, config.learning_rate, compute, follows=True)
        self.learners = {"vae": self._vae, "actor": self._actor, "critics": self.critics.learner}
        self.state = {"lagrangian": self.lagrangian, "log_alpha": self.log_alpha}
        self._reduce = compute.reduce_gradients

    @classmethod
    def draws(cls, config: BEARLagConfig, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Latents of size 2 A, for the VAE's loss and its samples, and noise of the policy's actions."""
        return {
            "encoding": Draw((batch_size, 2 * action_dim)),
            "next_action_noise": Draw((batch_size, config.num_candidates, action_dim)),
            "latent": Draw((batch_size, config.mmd_samples, 2 * action_dim)),
            "action_noise": Draw((batch_size, config.mmd_samples, action_dim)),
        }

    def next_values(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r and Q^c of the next states (B,), from noise (B, N, A) of N actions each."""
        with torch.no_grad():
            drawn = self._actor.target_module.draw_raw(batch.next_observation, noise).tanh()
            values = self.critics.candidate_values(batch.next_observation, drawn)
            return next_values(*values, costliest=self.config.benchmark_targets)

    def policy_values(self, batch: Batch, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q^r and Q^c of one action per state, and the discrepancy of N from the VAE's M; each (B,).

        Args:
            batch: Its observations are used.
            latent: Standard normal, shape (B, M, L), for the VAE's actions.
            noise: Standard normal, shape (B, N, A), for the policy's actions.
        """
        config = self.config
        with torch.no_grad():
            clip = config.latent_clip
            like_data = self._vae.module.decode_raw(batch.observation, latent.clamp(-clip, clip))
        # Before the tanh, where actions at the border still differ.
        drawn = self._actor.module.draw_raw(batch.observation, noise)
        discrepancy = mmd(like_data, drawn, config.kernel, config.mmd_sigma)
        return *self.critics.policy_values(batch.observation, drawn[:, 0].tanh()), discrepancy

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        config, threshold = self.config, self.critics.threshold
        loss, metrics = batch_vae_loss(self._vae.module, batch, noise["encoding"], config.kl_weight)
        self._vae.step(loss)

        next_reward, next_cost = self.next_values(batch, noise["next_action_noise"])
        loss, critic_metrics = self.critics.loss(batch, next_reward, next_cost)
        self.critics.learner.step(loss)

        reward_value, cost_value, discrepancy = self.policy_values(
            batch, noise["latent"], noise["action_noise"]
        )
        multiplier = self.lagrangian.update(cost_value.detach().mean() - threshold)
        reward_weight = float(self.updates >= config.support_updates)
        self._actor.step(
            actor_loss(
                reward_value,
                cost_value,
                discrepancy,
                self.log_alpha.value,
                multiplier,
                threshold,
                config.mmd_threshold,
                reward_weight,
            )
        )
        mean_discrepancy = self._update_alpha(discrepancy)

        self.critics.learner.update_target(config.target_update_rate)
        self._actor.update_target(config.target_update_rate)
        return {
            **metrics,
            **critic_metrics,
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": cost_value.detach().mean(),
            "policy/multiplier": multiplier.clone(),
            "policy/mmd": mean_discrepancy,
            "policy/alpha": self.log_alpha.alpha(),
        }

    def _update_alpha(self, discrepancy: Tensor) -> Tensor:
        """A step of log alpha; returns the mean discrepancy over all processes."""
        mean_discrepancy = discrepancy.detach().mean()
        if self._reduce is not None:
            self._reduce([mean_discrepancy])
        self._alpha_optimizer.zero_grad()
        alpha_loss(self.log_alpha.value, mean_discrepancy, self.config.mmd_threshold).backward()
        self._alpha_optimizer.step()
        self.log_alpha.climb()
        return mean_discrepancy

    def optimizers(self) -> dict[str, Optimizer]:
        """Every network's optimizer, and alpha's."""
        return {**super().optimizers(), "log_alpha": self._alpha_optimizer}
