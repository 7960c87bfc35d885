"""SPI, safe policy improvement via a diffusion model: losses top-down, then one update.

Equations are numbered as in the paper "Safe Policy Improvement via Diffusion Model for Offline RL".
Where the paper is silent, Diffusion-QL's choice is taken.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from spi_diffusers.algorithms.networks import (
    ComputeReplica,
    CriticStack,
    FusedAdam,
    clip_gradients,
    critic_loss,
    frozen_copy,
    polyak_update,
    td_target,
)
from spi_diffusers.algorithms.step_inputs import StepInputs
from spi_diffusers.config.algorithms import CostRemapConfig, SPIConfig
from spi_diffusers.models import MLPNoiseModel, TwinCritic

REWARD, SAFETY = 0, 1  # position of the critics in the stack
SAFETY_HEAD, COST_HEAD = 0, 1  # heads of the safety critic


def vp_betas(num_train_timesteps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> list[float]:
    """The variance-preserving noise schedule of Diffusion-QL, for `DDPMScheduler(trained_betas=...)`.

    beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2 t - 1) / (2 T^2)), t = 1..T.
    """
    steps = num_train_timesteps
    return [
        1.0 - math.exp(-beta_min / steps - 0.5 * (beta_max - beta_min) * (2 * t - 1) / steps**2)
        for t in range(1, steps + 1)
    ]


def make_scheduler(config: SPIConfig) -> DDPMScheduler:
    """The DDPM scheduler that a policy is trained and shipped with."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        trained_betas=vp_betas(config.num_train_timesteps, config.beta_min, config.beta_max),
        prediction_type="epsilon",
        variance_type="fixed_small",
        clip_sample=True,
        # With fewer steps than T, "leading" would start from noise at a level the noise model never saw.
        timestep_spacing="trailing",
    )


def remap_cost(cost: Tensor, config: CostRemapConfig) -> Tensor:
    """Eq. 4: c' = 1 - f(c), 0 where unsafe and 1 where safe. Shape is kept."""
    if config.kind == "indicator":
        return 1.0 - (cost > 0).to(cost.dtype)
    divisor = config.scale if config.kind == "scaled" else 1.0
    return 1.0 - (cost / divisor).clamp(0.0, 1.0)


def add_noise(action: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Eq. 7: a_t = sqrt(alpha-bar_t) a_0 + sqrt(1 - alpha-bar_t) y; alpha_bar has shape (B, 1)."""
    return alpha_bar.sqrt() * action + (1.0 - alpha_bar).sqrt() * noise


def noise_loss(
    predicted: Tensor, noise: Tensor, imitated: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Eq. 9: mean squared error of the predicted noise, both of shape (B, A).

    Args:
        predicted: Predicted noise.
        noise: True noise.
        imitated: Which samples count, shape (B,), bool; None: all.
        share: The share of samples that count in expectation. It divides, not the number of this batch,
            so that the mean over processes is the mean over the whole batch.
    """
    error = (predicted - noise).square()
    if imitated is None:
        return error.mean()
    return (error.mean(dim=-1) * imitated).mean() / share


def one_step_action(noisy_action: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """Solve Eq. 7 for a_0, clipped to [-1, 1]; alpha_bar has shape (B, 1)."""
    return ((noisy_action - (1.0 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()).clamp(-1.0, 1.0)


def value_scale(other_twin: Tensor, kind: str) -> Tensor:
    """What a critic's value is divided by in Eq. 6, detached, from the other twin's values (B,)."""
    values = other_twin.detach()
    if kind == "std":
        return values.std(correction=0).clamp_min(1e-6)
    if kind == "mean_abs":
        return values.abs().mean().clamp_min(1e-6)
    return torch.ones_like(values[0])


def guidance_loss(
    reward_values: Tensor,
    safety_values: Tensor,
    reward_weight: Tensor | float,
    safety_weight: Tensor | float,
    twin: int,
    scale: str = "std",
) -> Tensor:
    """Value term of Eq. 6: -mu Q^r / scale_r - phi Q^c' / scale_c, averaged over the batch.

    Args:
        reward_values: Both twins of Q^r at the generated actions, shape (2, B).
        safety_values: Both twins of Q^c' at the generated actions, shape (2, B).
        reward_weight: mu, a number or one per sample (B,).
        safety_weight: phi, a number or one per sample (B,).
        twin: Which twin guides (0 or 1); the other one gives the scale.
        scale: "std", "mean_abs" or "none"; on several processes, over this process's share of the batch.
    """
    reward_scale = value_scale(reward_values[1 - twin], scale)
    safety_scale = value_scale(safety_values[1 - twin], scale)
    gain = reward_weight * reward_values[twin] / reward_scale
    gain = gain + safety_weight * safety_values[twin] / safety_scale
    return -gain.mean()


class SPI:
    """SPI's networks in training, and one update of them.

    An update has two halves that read the weights as they stood before it and write separate ones: the
    critics' half (Eq. 10, 11) and the policy's half (Eq. 6, 9), which also samples a_{i+1} for the batch
    after. So they may run side by side on two cores, with the same result as one after the other.

    Args:
        config: The algorithm's configuration.
        noise_model: Noise model, trained in place.
        reward_critic: Q^r, trained in place.
        safety_critic: Q^c' (and Q^c as its second head), trained in place.
        learning_rate: Adam's learning rate of both halves.
        max_grad_norm: Gradient-norm clip of both halves; 0 switches it off.
        dtype: Compute dtype, float32 or bfloat16; weights and optimiser stay float32.
        overlap: Run the two halves in two threads.
        reduce_gradients: Averages a list of gradients over processes, in place; None for one process.
    """

    inputs_class = StepInputs

    def __init__(
        self,
        config: SPIConfig,
        noise_model: MLPNoiseModel,
        reward_critic: TwinCritic,
        safety_critic: TwinCritic,
        *,
        learning_rate: float = 3e-4,
        max_grad_norm: float = 10.0,
        dtype: torch.dtype = torch.float32,
        overlap: bool = False,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        if overlap and reduce_gradients is not None:
            raise ValueError("overlap needs a single process: collectives must not run in two threads.")
        self.config = config
        self.noise_model = noise_model
        self.ema_noise_model = frozen_copy(noise_model)
        self.reward_critic = reward_critic
        self.safety_critic = safety_critic
        self.critics = CriticStack([reward_critic, safety_critic])
        self.target_critics = frozen_copy(self.critics)
        self.max_grad_norm = max_grad_norm
        self.updates = 0
        self._reduce_gradients = reduce_gradients

        scheduler = make_scheduler(config)
        device = noise_model.device
        self._alpha_bars = scheduler.alphas_cumprod.to(device)
        self._coefficients = MLPNoiseModel.ddpm_coefficients(scheduler)
        num_heads = max(self.critics.heads)
        heads = [REWARD * num_heads, SAFETY * num_heads + SAFETY_HEAD, SAFETY * num_heads + COST_HEAD]
        self._heads = torch.tensor(heads if config.predict_cost else heads[:2], device=device)

        self._critics = ComputeReplica(self.critics, dtype, trainable=True)
        self._policy = ComputeReplica(noise_model, dtype, trainable=True)
        # Read by the policy's half while the critics' half writes, so these are always copies. Two, in turn:
        # the critics' half fills the one that the next update's policy half reads.
        self._frozen_critics = ComputeReplica(self.critics, dtype, trainable=False)
        self._spare_critics = ComputeReplica(self.critics, dtype, trainable=False)
        self._target_critics = ComputeReplica(self.target_critics, dtype, trainable=False)
        self._ema_policy = ComputeReplica(self.ema_noise_model, dtype, trainable=False)

        self.critic_optimizer = FusedAdam(self.critics.parameters(), lr=learning_rate)
        self.policy_optimizer = FusedAdam(noise_model.parameters(), lr=learning_rate)
        self._pool = None
        if overlap:
            # A new thread learns torch's number of threads only when asked for it. Without, its first matrix
            # product would start OpenMP workers of its own, which slow everything down from then on.
            self._pool = ThreadPoolExecutor(1, "spi-policy", initializer=torch.get_num_threads)

    def update(self, inputs: StepInputs, upcoming: StepInputs) -> tuple[dict[str, Tensor], StepInputs]:
        """One combined training step (Algorithm 1).

        Args:
            inputs: The batch, with its `next_action`.
            upcoming: The batch after it, whose `next_action` this update samples.

        Returns:
            Metrics as detached scalars, and `upcoming` with its next action.
        """
        if self._pool is not None:
            policy_half = self._pool.submit(self._update_policy, inputs, upcoming)
            metrics = self._update_critics(inputs)
            policy_metrics, upcoming = policy_half.result()
        else:
            policy_metrics, upcoming = self._update_policy(inputs, upcoming)
            metrics = self._update_critics(inputs)
        self.updates += 1
        self._frozen_critics, self._spare_critics = self._spare_critics, self._frozen_critics
        return metrics | policy_metrics, upcoming

    @torch.inference_mode()
    def with_next_action(self, inputs: StepInputs) -> StepInputs:
        """Sample a_{i+1} at s_{i+1} from the EMA noise model, one sample shared by both critics."""
        if self.config.next_action == "dataset":
            if inputs.next_action is None:
                raise ValueError("next_action='dataset' needs batches that carry the recorded next action.")
            return inputs
        weight = inputs.safety_weight if self.config.conditioned else None
        policy: MLPNoiseModel = self._ema_policy.module  # type: ignore[assignment]
        action = policy.denoise(inputs.next_observation, weight, self._coefficients, inputs.chain_noise)
        return replace(inputs, next_action=action)

    def prepare(self, inputs: StepInputs) -> StepInputs:
        """The first update's inputs, with their next action."""
        return self.with_next_action(inputs)

    def modules(self) -> dict[str, nn.Module]:
        """What is checkpointed. The critics are saved as the stack that owns their parameters."""
        names = ("noise_model", "ema_noise_model", "critics", "target_critics")
        return {name: getattr(self, name) for name in names}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Both halves' optimisers."""
        return {name: getattr(self, name) for name in ("critic_optimizer", "policy_optimizer")}

    def policy_components(self) -> dict[str, Any]:
        """What acts: the moving average of the noise model, both critics, and the scheduler."""
        return {
            "noise_model": self.ema_noise_model,
            "reward_critic": self.reward_critic,
            "safety_critic": self.safety_critic,
            "scheduler": make_scheduler(self.config),
        }

    def refresh_replicas(self) -> None:
        """Copy all weights into their compute replicas; call it after loading weights."""
        replicas = (self._critics, self._target_critics, self._frozen_critics, self._policy, self._ema_policy)
        for replica in replicas:
            replica.refresh()

    def _update_critics(self, inputs: StepInputs) -> dict[str, Tensor]:
        config = self.config
        assert inputs.next_action is not None, "call with_next_action on the first batch"
        with torch.inference_mode():
            next_values = self._by_head(
                self._target_critics.module(
                    self._critic_inputs(inputs.next_observation, inputs.next_action, inputs.safety_weight)
                )
            )
            # The minimum of the twins is the cautious side for reward and for safety alike.
            next_value = next_values[: SAFETY + 1].amin(dim=1)
            signals = [inputs.reward, remap_cost(inputs.cost, config.cost_remap)]
            if config.predict_cost:
                # A prediction, so neither side is favoured: the twins' mean. An end costs nothing more.
                next_value = torch.cat([next_value, next_values[SAFETY + 1 :].mean(dim=1)])
                signals.append(inputs.cost)
            target = td_target(torch.stack(signals), next_value, inputs.terminated, config.gamma)
        values = self._by_head(
            self._critics.module(self._critic_inputs(inputs.observation, inputs.action, inputs.safety_weight))
        )
        losses = critic_loss(values, target)
        losses.sum().backward()
        self._step(self._critics, self.critic_optimizer)
        polyak_update(self._target_critics.masters, self._critics.masters, config.target_update_rate)
        for replica in (self._critics, self._target_critics, self._spare_critics):
            replica.refresh()
        names = ("critic/reward_loss", "critic/safety_loss", "critic/cost_loss")
        metrics = dict(zip(names, losses.detach().unbind(), strict=False))
        mean_values = values.detach().mean(dim=(1, 2))
        metrics["critic/reward_value"] = mean_values[REWARD]
        metrics["critic/safety_value"] = mean_values[SAFETY]
        return metrics

    def _update_policy(
        self, inputs: StepInputs, upcoming: StepInputs
    ) -> tuple[dict[str, Tensor], StepInputs]:
        config = self.config
        weight = inputs.safety_weight if config.conditioned else None
        alpha_bar = self._alpha_bars[inputs.timestep].unsqueeze(-1)
        noisy_action = add_noise(inputs.action, inputs.noise, alpha_bar)
        policy: MLPNoiseModel = self._policy.module  # type: ignore[assignment]
        predicted = policy(noisy_action, inputs.timestep, inputs.observation, weight, return_dict=False)[
            0
        ].float()
        denoising = noise_loss(predicted, inputs.noise, inputs.imitated, config.imitation_share)
        if config.guidance == "chain":
            action = policy.denoise(inputs.observation, weight, self._coefficients, inputs.guidance_noise)
        else:
            action = one_step_action(noisy_action, predicted, alpha_bar)
        values = self._frozen_critics.module(
            self._critic_inputs(inputs.observation, action, inputs.safety_weight)
        )
        reward_weight, safety_weight = self._value_weights(inputs)
        guidance = guidance_loss(
            values[REWARD, :, :, 0],
            values[SAFETY, :, :, SAFETY_HEAD],
            reward_weight,
            safety_weight,
            int(inputs.twin),
            config.guidance_scale,
        )
        loss = config.eta * denoising + guidance
        loss.backward()
        upcoming = self.with_next_action(upcoming)
        self._step(self._policy, self.policy_optimizer)
        # The average warms up: early weights are noise and should be forgotten quickly.
        decay = min(config.ema_decay, (1 + self.updates) / (10 + self.updates))
        polyak_update(self._ema_policy.masters, self._policy.masters, 1.0 - decay)
        self._policy.refresh()
        self._ema_policy.refresh()
        metrics = {"policy/noise_loss": denoising.detach(), "policy/guidance_loss": guidance.detach()}
        return metrics, upcoming

    def _value_weights(self, inputs: StepInputs) -> tuple[Tensor | float, Tensor | float]:
        """(mu, phi) of Eq. 6: fixed numbers, or (1 - eta) shared out by each sample's safety weight."""
        config = self.config
        if not config.conditioned:
            assert config.mu is not None
            assert config.phi is not None
            return config.mu, config.phi
        share = 1.0 - config.eta
        return share * (1.0 - inputs.safety_weight), share * inputs.safety_weight

    def _by_head(self, values: Tensor) -> Tensor:
        """Sort values (C, 2, B, H) of the stack into (K, 2, B): Q^r, Q^c' and, where it is learned, Q^c."""
        return values.permute(0, 3, 1, 2).flatten(0, 1).index_select(0, self._heads)

    def _critic_inputs(self, observation: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        parts = [observation, action]
        if self.config.conditioned:
            parts.append(weight.unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    def _step(self, replica: ComputeReplica, optimizer: FusedAdam) -> None:
        replica.hand_over_gradients()
        if self._reduce_gradients is not None:
            self._reduce_gradients([p.grad for p in replica.masters if p.grad is not None])
        if self.max_grad_norm > 0:
            clip_gradients(replica.masters, self.max_grad_norm)
        optimizer.fused_step()
        replica.clear_gradients()
