"""Diffusion-QL: a diffusion policy that climbs the value of its own samples; SPI's ancestor, without a cost.

Source: Wang, Hunt and Zhou, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement
Learning" (2023). As there, the gradient goes through the whole denoising chain, and the value is divided by
its mean size.

Where its authors' code differs: it acts with the trained policy, weighed by the target critic, while here
the policy's moving average acts, weighed by the trained critic, as in SPI; its average keeps the initial
weights for the first updates, while here it follows the policy; and it can take the best of several next
actions for the target (`max_q_backup`, off for locomotion), which is not here.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim import Optimizer

from spi_diffusers.algorithms.base import Baseline, Batch, PolicySizes
from spi_diffusers.algorithms.networks import (
    ComputeReplica,
    FusedAdam,
    clip_gradients,
    critic_loss,
    frozen_copy,
    polyak_update,
    td_target,
)
from spi_diffusers.algorithms.spi import add_noise, noise_loss, value_scale, vp_betas
from spi_diffusers.config.algorithms import DiffusionQLConfig
from spi_diffusers.models.diffusion_actor import DiffusionActor


def value_loss(values: Tensor, twin: int) -> Tensor:
    """Mean of -Q_twin / mean |Q_other|, the other twin detached; values of both twins, shape (2, B)."""
    return -(values[twin] / value_scale(values[1 - twin], "mean_abs")).mean()


def timesteps(normal: Tensor, steps: int) -> Tensor:
    """Uniform timesteps in {0, ..., steps - 1} from standard normal numbers of any shape."""
    return (torch.special.ndtr(normal) * steps).long().clamp_max(steps - 1)


class _Count(nn.Module):
    """Number of updates, as a buffer, so that it is checkpointed with the networks."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros((), dtype=torch.int64))


class DiffusionQL(Baseline):
    """Diffusion-QL's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task; the cost limit is not looked at.
        dtype: Compute dtype, float32 or bfloat16; weights and optimisers stay float32.
        reduce_gradients: Averages gradients over processes, in place; None for one process.
        device: Where training runs.
    """

    name: ClassVar[str] = "diffusion-ql"

    def __init__(
        self,
        config: DiffusionQLConfig,
        sizes: PolicySizes,
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.config = config
        self.actor = DiffusionActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            betas=vp_betas(config.num_train_timesteps, config.beta_min, config.beta_max),
            hidden_dims=list(config.hidden_dims),
            activation=config.activation,
            time_embed_dim=config.time_embed_dim,
            num_candidates=config.num_candidates,
        ).to(device)
        self._coefficients = self.actor.coefficients
        self._alpha_bars = self.actor.alpha_bars.to(device)
        self._count = _Count()
        # The actor holds the moving average, which acts; this one is trained.
        self._noise_model = copy.deepcopy(self.actor.noise_model)
        self._critic = self.actor.critic
        self._target_critic = frozen_copy(self._critic)
        self._trained_policy = ComputeReplica(self._noise_model, dtype, trainable=True)
        self._average_policy = ComputeReplica(self.actor.noise_model, dtype, trainable=False)
        self._trained_critic = ComputeReplica(self._critic, dtype, trainable=True)
        self._following_critic = ComputeReplica(self._target_critic, dtype, trainable=False)
        self._policy_optimizer = FusedAdam(self._noise_model.parameters(), lr=config.learning_rate)
        self._critic_optimizer = FusedAdam(self._critic.parameters(), lr=config.learning_rate)
        self._reduce_gradients = reduce_gradients

    @classmethod
    def noise_shapes(
        cls, config: DiffusionQLConfig, batch_size: int, action_dim: int
    ) -> dict[str, tuple[int, ...]]:
        """Noise for both denoising chains and the noise loss, and what timestep and twin are drawn from."""
        chain = (batch_size, config.num_train_timesteps, action_dim)
        return {
            "next_chain": chain,
            "chain": chain,
            "noise": (batch_size, action_dim),
            "timestep": (batch_size,),
            "twin": (batch_size,),
        }

    def update(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One training step; returns metrics as detached scalars."""
        metrics = self._update_critic(batch, noise["next_chain"])
        metrics |= self._update_policy(batch, noise)
        self._count.value += 1
        self._update_averages(int(self._count.value))
        return metrics

    def _update_critic(self, batch: Batch, chain: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            next_action = self._denoise(self._average_policy, batch.next_observation, chain)
            (next_values,) = self._following_critic.module(
                batch.next_observation, next_action, return_dict=False
            )
            target = td_target(
                batch.reward, next_values[..., 0].amin(dim=0), batch.terminated, self.config.gamma
            )
        (values,) = self._trained_critic.module(batch.observation, batch.action, return_dict=False)
        loss = critic_loss(values[..., 0], target)
        loss.backward()
        self._step(self._trained_critic, self._critic_optimizer)
        return {"critic/reward_loss": loss.detach(), "critic/reward_value": values.detach().mean()}

    def _update_policy(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        step = timesteps(noise["timestep"], self.config.num_train_timesteps)
        noisy = add_noise(batch.action, noise["noise"], self._alpha_bars[step].unsqueeze(-1))
        (predicted,) = self._trained_policy.module(noisy, step, batch.observation, return_dict=False)
        imitation = noise_loss(predicted.float(), noise["noise"])
        action = self._denoise(self._trained_policy, batch.observation, noise["chain"])
        (values,) = self._trained_critic.module(batch.observation, action, return_dict=False)
        # One coin an update, as in the paper; of several processes, each tosses its own.
        value = value_loss(values[..., 0], int(noise["twin"][0] > 0))
        loss = imitation + self.config.q_weight * value
        loss.backward(inputs=list(self._trained_policy.module.parameters()))  # the critic stays as it is
        self._step(self._trained_policy, self._policy_optimizer)
        return {"policy/noise_loss": imitation.detach(), "policy/guidance_loss": value.detach()}

    def _denoise(self, policy: ComputeReplica, observation: Tensor, chain: Tensor) -> Tensor:
        return policy.module.denoise(observation, None, self._coefficients, chain.transpose(0, 1))  # type: ignore[operator]

    def _update_averages(self, updates: int) -> None:
        config = self.config
        polyak_update(self._following_critic.masters, self._trained_critic.masters, config.target_update_rate)
        self._following_critic.refresh()
        if updates % config.ema_every == 0:
            rate = 1.0 if updates < config.ema_start else 1.0 - config.ema_decay
            polyak_update(self._average_policy.masters, self._trained_policy.masters, rate)
            self._average_policy.refresh()

    def _step(self, replica: ComputeReplica, optimizer: FusedAdam) -> None:
        replica.hand_over_gradients()
        if self._reduce_gradients is not None:
            self._reduce_gradients([p.grad for p in replica.masters if p.grad is not None])
        if self.config.max_grad_norm > 0:
            clip_gradients(replica.masters, self.config.max_grad_norm)
        optimizer.fused_step()
        replica.clear_gradients()
        replica.refresh()

    def modules(self) -> dict[str, nn.Module]:
        """Everything to checkpoint."""
        return {
            "noise_model": self._noise_model,
            "average_noise_model": self.actor.noise_model,
            "critic": self._critic,
            "target_critic": self._target_critic,
            "count": self._count,
        }

    def optimizers(self) -> dict[str, Optimizer]:
        """Both networks' optimisers."""
        return {"noise_model": self._policy_optimizer, "critic": self._critic_optimizer}

    def policy_components(self) -> dict[str, ModelMixin]:
        """What acts."""
        return {"actor": self.actor}

    def refresh_replicas(self) -> None:
        """Copy all weights into their compute replicas; call it after loading weights."""
        for replica in (
            self._trained_policy,
            self._average_policy,
            self._trained_critic,
            self._following_critic,
        ):
            replica.refresh()
