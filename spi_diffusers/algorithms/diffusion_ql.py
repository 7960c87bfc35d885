"""Diffusion-QL: a diffusion policy that climbs the value of its own samples; SPI's ancestor, without a cost.

Source: Wang, Hunt and Zhou, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement
Learning" (2023). As there, the gradient goes through the whole denoising chain, and the value is divided by
its mean size.

Where its authors' code differs: it acts with the trained policy, weighed by the target critic, while here
the policy's moving average acts, weighed by the trained critic, as in SPI; its average keeps the initial
weights for the first updates, while here it follows the policy; and it can take the best of several next
actions for the target (`max_q_backup`, off for locomotion), which is not here.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Batch, Draw, Metrics, PolicySizes
from spi_diffusers.algorithms.losses import (
    add_noise,
    guiding_and_other,
    noise_loss,
    td_loss,
    td_target,
    value_scale,
    vp_betas,
)
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import DiffusionQLConfig
from spi_diffusers.models.actors import DiffusionActor
from spi_diffusers.models.noise_model import MLPNoiseModel


def value_loss(values: Tensor, twin: Tensor) -> Tensor:
    """Mean of -Q_twin / mean |Q_other|, the other twin detached; values of both twins, shape (2, B)."""
    value, other = guiding_and_other(values, twin)
    return -(value / value_scale(other, "mean_abs")).mean()


def timesteps(normal: Tensor, steps: int) -> Tensor:
    """Uniform timesteps in {0, ..., steps - 1} from standard normal numbers of any shape."""
    return (torch.special.ndtr(normal) * steps).long().clamp_max(steps - 1)


class DiffusionQL(Algorithm):
    """Diffusion-QL's networks in training: two losses, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task; the cost limit is not looked at.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: DiffusionQLConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        self.actor = DiffusionActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            betas=vp_betas(config.num_train_timesteps, config.beta_min, config.beta_max),
            hidden_dims=list(config.hidden_dims),
            activation=config.activation,
            time_embed_dim=config.time_embed_dim,
            num_candidates=config.num_candidates,
        )
        self._coefficients = self.actor.coefficients  # as they are on the CPU, where denoising reads them
        self.actor.to(compute.device)
        self._alpha_bars = self.actor.alpha_bars.to(compute.device)
        rate, clip = config.learning_rate, config.max_grad_norm
        self._policy = Learner(self.actor.noise_model, rate, compute, follows=True, max_grad_norm=clip)
        self._critic = Learner(self.actor.critic, rate, compute, follows=True, max_grad_norm=clip)
        self.actor.noise_model = cast(MLPNoiseModel, self._policy.target)  # the moving average acts
        self.learners = {"noise_model": self._policy, "critic": self._critic}

    @classmethod
    def draws(cls, config: DiffusionQLConfig, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Noise for both denoising chains and the noise loss, and what timestep and twin are drawn from."""
        chain = Draw((batch_size, config.num_train_timesteps, action_dim))
        return {
            "next_chain": chain,
            "chain": chain,
            "noise": Draw((batch_size, action_dim)),
            "timestep": Draw((batch_size,)),
            "twin": Draw((batch_size,)),
        }

    def critic_loss(self, batch: Batch, noise: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Twin Q-learning: the next action is the average policy's, its value the lower target twin's."""
        with torch.inference_mode():
            policy, critic = self._policy.target_module, self._critic.target_module
            next_action = self._denoise(policy, batch.next_observation, noise["next_chain"])
            next_value = critic(batch.next_observation, next_action).values.amin(dim=0)
            target = td_target(batch.reward, next_value, batch.terminated, self.config.gamma)
        values = self._critic.module(batch.observation, batch.action).values
        loss = td_loss(values, target)
        return loss, {"critic/reward_loss": loss.detach(), "critic/reward_value": values.detach().mean()}

    def policy_loss(self, batch: Batch, noise: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The noise loss, plus eta times the value of actions denoised with gradient."""
        policy = self._policy.module
        step = timesteps(noise["timestep"], self.config.num_train_timesteps)
        noisy = add_noise(batch.action, noise["noise"], self._alpha_bars[step].unsqueeze(-1))
        predicted = policy(noisy, step, batch.observation).sample
        imitation = noise_loss(predicted.float(), noise["noise"])
        action = self._denoise(policy, batch.observation, noise["chain"])
        values = self._critic.module(batch.observation, action).values
        # One coin an update, as in the paper; of several processes, each tosses its own.
        value = value_loss(values, (noise["twin"][0] > 0).long())
        loss = imitation + self.config.q_weight * value
        return loss, {"policy/noise_loss": imitation.detach(), "policy/guidance_loss": value.detach()}

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        loss, metrics = self.critic_loss(batch, noise)
        self._critic.step(loss)
        loss, policy_metrics = self.policy_loss(batch, noise)
        self._policy.step(loss)
        self._critic.update_target(self.config.target_update_rate)
        updates = self.updates + 1
        if updates % self.config.ema_every == 0:
            self._policy.update_target(
                1.0 if updates < self.config.ema_start else 1.0 - self.config.ema_decay
            )
        return metrics | policy_metrics

    def _denoise(self, policy: MLPNoiseModel, observation: Tensor, chain: Tensor) -> Tensor:
        return policy.denoise(observation, None, self._coefficients, chain.transpose(0, 1))
