"""SPI, safe policy improvement via a diffusion model: losses top-down, then one update.

Equations are numbered as in the paper "Safe Policy Improvement via Diffusion Model for Offline RL".
Where the paper is silent, Diffusion-QL's choice is taken.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Draw, Inputs, Metrics, PolicySizes
from spi_diffusers.algorithms.losses import (
    add_noise,
    guiding_and_other,
    noise_loss,
    one_step_action,
    td_loss,
    td_target,
    value_scale,
    vp_betas,
)
from spi_diffusers.algorithms.networks import Compute, ComputeReplica, CriticStack, Halves, Learner
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.units import Units
from spi_diffusers.models import MLPNoiseModel, TwinCritic

REWARD, SAFETY = 0, 1  # position of the critics in the stack
#: What a transition that is not among the best counts in the noise loss at w = 0; at w = 1 it counts nothing.
#: Where the best episodes never were, Q^r alone would pull the policy out of the data. The safest policy is
#: to know the safest episodes only.
OTHERS_WEIGHT = 0.25


@dataclass(frozen=True)
class StepInputs(Inputs):
    """Everything one update consumes: a batch and all of its randomness.

    Attributes:
        observation: Normalized, shape (B, O).
        next_observation: Normalized, shape (B, O).
        action: In [-1, 1], shape (B, A).
        reward: In the data's unit, shape (B,).
        cost: In the data's unit, shape (B,).
        terminated: Shape (B,), bool.
        safety_weight: w ~ U(0, 1), shape (B,).
        timestep: Diffusion timestep ~ U{0..T-1}, shape (B,), int64.
        noise: Standard normal, shape (B, A), for the noise loss.
        chain_noise: Standard normal, shape (T, B, A), for sampling the next action.
        guidance_noise: Standard normal, shape (T, B, A), for chain guidance; empty (0, B, A) otherwise.
        twin: Which twin guides, int64 scalar 0 or 1.
        next_action: a_{i+1}, in [-1, 1], shape (B, A).
        imitated: Which transitions the noise loss counts fully, shape (B,), bool; None: all.
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    safety_weight: Tensor
    timestep: Tensor
    noise: Tensor
    chain_noise: Tensor
    guidance_noise: Tensor
    twin: Tensor
    next_action: Tensor | None = None
    imitated: Tensor | None = None


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


def remap_cost(cost: Tensor, kind: str) -> Tensor:
    """Eq. 4: c' = 1 - f(c), 0 where unsafe and 1 where safe, of costs in the data's unit. Shape is kept."""
    unsafety = (cost > 0).to(cost.dtype) if kind == "indicator" else cost.clamp(0.0, 1.0)
    return 1.0 - unsafety


def guidance_loss(
    reward_values: Tensor,
    safety_values: Tensor,
    reward_weight: Tensor | float,
    safety_weight: Tensor | float,
    twin: Tensor,
    scale: str = "std",
) -> Tensor:
    """Value term of Eq. 6: -mu Q^r / scale_r - phi Q^c' / scale_c, averaged over the batch.

    Args:
        reward_values: Both twins of Q^r at the generated actions, shape (2, B).
        safety_values: Both twins of Q^c' at the generated actions, shape (2, B).
        reward_weight: mu, a number or one per sample (B,).
        safety_weight: phi, a number or one per sample (B,).
        twin: Which twin guides, int64 scalar 0 or 1; the other one gives the scale.
        scale: "std", "mean_abs" or "none"; on several processes, over this process's share of the batch.
    """
    reward_value, other_reward = guiding_and_other(reward_values, twin)
    safety_value, other_safety = guiding_and_other(safety_values, twin)
    gain = reward_weight * reward_value / value_scale(other_reward, scale)
    gain = gain + safety_weight * safety_value / value_scale(other_safety, scale)
    return -gain.mean()


class SPI(Algorithm):
    """SPI's networks in training: two losses, and one update of them.

    An update has two halves that read the weights as they stood before it and write separate ones: the
    critics' half (Eq. 10, 11) and the policy's half (Eq. 6, 9), which also samples a_{i+1} for the batch
    after. So they may run side by side on two cores, with the same result as one after the other.

    Args:
        config: Its settings.
        noise_model: Noise model, trained in place.
        reward_critic: Q^r, trained in place.
        safety_critic: Q^c', trained in place.
        compute: Compute dtype, processes, and whether the halves overlap.
        learning_rate: Adam's learning rate of both halves.
        max_grad_norm: Gradient-norm clip of both halves; 0 switches it off.
    """

    inputs_class = StepInputs
    overlaps = True
    in_units = True
    pipeline = "SPIPolicyPipeline"

    def __init__(
        self,
        config: SPIConfig,
        noise_model: MLPNoiseModel,
        reward_critic: TwinCritic,
        safety_critic: TwinCritic,
        compute: Compute,
        *,
        learning_rate: float = 3e-4,
        max_grad_norm: float = 10.0,
    ):
        if compute.overlap and compute.reduce_gradients is not None:
            raise ValueError("overlap needs a single process: collectives must not run in two threads.")
        self.config = config
        self.noise_model = noise_model
        self.reward_critic = reward_critic
        self.safety_critic = safety_critic
        self.critics = CriticStack([reward_critic, safety_critic])
        scheduler = make_scheduler(config)
        self._coefficients = MLPNoiseModel.ddpm_coefficients(scheduler)
        self._alpha_bars = scheduler.alphas_cumprod.to(noise_model.device)

        options: dict[str, Any] = {"follows": True, "max_grad_norm": max_grad_norm}
        self._critics = Learner(self.critics, learning_rate, compute, **options)
        self._policy = Learner(noise_model, learning_rate, compute, **options)
        self.learners = {"critics": self._critics, "noise_model": self._policy}
        self.target_critics, self.ema_noise_model = self._critics.target, self._policy.target
        self._halves = Halves(compute.overlap)
        # Read by the policy's half while the critics' half writes. Two, in turn: the critics' half fills the
        # one that the next update's policy half reads.
        self._frozen_critics = ComputeReplica(self.critics, compute.dtype, trainable=False)
        self._spare_critics = ComputeReplica(self.critics, compute.dtype, trainable=False)

    # ---- what it is to the trainer

    @classmethod
    def build(cls, config: TrainConfig, sizes: PolicySizes, compute: Compute) -> "SPI":
        """SPI with fresh networks, as the configuration says."""
        network, own = config.network, config.settings
        shared = {
            "observation_dim": sizes.observation_dim,
            "action_dim": sizes.action_dim,
            "hidden_dims": list(network.hidden_dims),
            "activation": network.activation,
            "use_safety_weight": own.conditioned,
        }
        noise_model = MLPNoiseModel(
            **shared,
            time_embed_dim=network.time_embed_dim,
            action_low=config.action_low,
            action_high=config.action_high,
        )
        reward_critic = TwinCritic(**shared)
        safety_critic = TwinCritic(**shared)
        return cls(
            own,
            noise_model.to(compute.device),
            reward_critic.to(compute.device),
            safety_critic.to(compute.device),
            compute,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
        )

    @classmethod
    def columns(cls, config: SPIConfig) -> tuple[str, ...]:
        """Columns of the data that an update needs."""
        optional = {"next_action": config.next_action == "dataset", "imitated": config.imitation_share < 1.0}
        always = ("observation", "next_observation", "action", "reward", "cost", "terminated")
        return (*always, *(name for name, needed in optional.items() if needed))

    @classmethod
    def draws(cls, config: SPIConfig, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Safety weights, diffusion timesteps, noises, and the twin that guides."""
        steps = config.num_train_timesteps
        next_steps = 0 if config.next_action == "dataset" else steps
        guidance_steps = steps if config.guidance == "chain" else 0
        return {
            "safety_weight": Draw((batch_size,), "uniform"),
            "timestep": Draw((batch_size,), "integer", steps),
            "noise": Draw((batch_size, action_dim)),
            "chain_noise": Draw((next_steps, batch_size, action_dim), batch_dim=1),
            "guidance_noise": Draw((guidance_steps, batch_size, action_dim), batch_dim=1),
            "twin": Draw((), "integer", 2, batch_dim=None),
        }

    @classmethod
    def is_evaluated(cls, config: TrainConfig) -> bool:
        """Where a policy of every safety weight is to choose from."""
        return config.settings.conditioned

    @classmethod
    def pipeline_settings(cls, config: TrainConfig, units: Units) -> dict[str, Any]:
        """What its critics' values mean."""
        return {"gamma": config.settings.gamma, "reward_unit": units.reward}

    # ---- losses

    def critic_loss(self, inputs: StepInputs) -> tuple[Tensor, Metrics]:
        """Eq. 10 and 11, summed."""
        config = self.config
        assert inputs.next_action is not None, "call prepare on the first batch"
        with torch.inference_mode():
            following = self._critic_inputs(inputs.next_observation, inputs.next_action, inputs.safety_weight)
            # The minimum of the twins is the cautious side for reward and for safety alike.
            next_value = self._critics.target_module(following).amin(dim=1)
            signals = torch.stack([inputs.reward, remap_cost(inputs.cost, config.cost_remap)])
            target = td_target(signals, next_value, inputs.terminated, config.gamma)
        now = self._critic_inputs(inputs.observation, inputs.action, inputs.safety_weight)
        values = self._critics.module(now)
        losses = td_loss(values, target)
        names = ("critic/reward_loss", "critic/safety_loss")
        metrics = dict(zip(names, losses.detach().unbind(), strict=True))
        mean_values = values.detach().mean(dim=(1, 2))
        metrics["critic/reward_value"] = mean_values[REWARD]
        metrics["critic/safety_value"] = mean_values[SAFETY]
        return losses.sum(), metrics

    def policy_loss(self, inputs: StepInputs) -> tuple[Tensor, Metrics]:
        """Eq. 6: eta times the noise loss (Eq. 9), plus the guidance of both critics."""
        config = self.config
        weight = self._condition(inputs)
        alpha_bar = self._alpha_bars[inputs.timestep].unsqueeze(-1)
        noisy_action = add_noise(inputs.action, inputs.noise, alpha_bar)
        policy = self._policy.module
        (predicted,) = policy(noisy_action, inputs.timestep, inputs.observation, weight, return_dict=False)
        predicted = predicted.float()
        others = OTHERS_WEIGHT * (1.0 - inputs.safety_weight)
        denoising = noise_loss(predicted, inputs.noise, inputs.imitated, config.imitation_share, others)
        if config.guidance == "chain":
            action = policy.denoise(inputs.observation, weight, self._coefficients, inputs.guidance_noise)
        else:
            action = one_step_action(noisy_action, predicted, alpha_bar)
        pairs = self._critic_inputs(inputs.observation, action, inputs.safety_weight)
        values = self._frozen_critics.module(pairs)
        guidance = guidance_loss(
            values[REWARD],
            values[SAFETY],
            *self._value_weights(inputs),
            inputs.twin,
            config.guidance_scale,
        )
        metrics = {"policy/noise_loss": denoising.detach(), "policy/guidance_loss": guidance.detach()}
        return config.eta * denoising + guidance, metrics

    # ---- one update

    def update(self, inputs: StepInputs, upcoming: StepInputs) -> tuple[Metrics, StepInputs]:
        """One combined training step (Algorithm 1).

        Args:
            inputs: The batch, with its `next_action`.
            upcoming: The batch after it, whose `next_action` this update samples.

        Returns:
            Metrics as detached scalars, and `upcoming` with its next action.
        """
        metrics, (policy_metrics, upcoming) = self._halves.run(
            partial(self._update_critics, inputs), partial(self._update_policy, inputs, upcoming)
        )
        self.updates += 1
        self._frozen_critics, self._spare_critics = self._spare_critics, self._frozen_critics
        return metrics | policy_metrics, upcoming

    def _update_critics(self, inputs: StepInputs) -> Metrics:
        loss, metrics = self.critic_loss(inputs)
        self._critics.step(loss)
        self._critics.update_target(self.config.target_update_rate)
        self._spare_critics.refresh()
        return metrics

    def _update_policy(self, inputs: StepInputs, upcoming: StepInputs) -> tuple[Metrics, StepInputs]:
        loss, metrics = self.policy_loss(inputs)
        self._policy.step(loss)
        upcoming = self.prepare(upcoming)
        # The average warms up: early weights are noise and should be forgotten quickly.
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        self._policy.update_target(1.0 - decay)
        return metrics, upcoming

    @torch.inference_mode()
    def prepare(self, inputs: StepInputs) -> StepInputs:
        """Sample a_{i+1} at s_{i+1} from the EMA noise model, one sample shared by both critics."""
        if self.config.next_action == "dataset":
            if inputs.next_action is None:
                raise ValueError("next_action='dataset' needs batches that carry the recorded next action.")
            return inputs
        action = self._policy.target_module.denoise(
            inputs.next_observation, self._condition(inputs), self._coefficients, inputs.chain_noise
        )
        return replace(inputs, next_action=action)

    def _condition(self, inputs: StepInputs) -> Tensor | None:
        return inputs.safety_weight if self.config.conditioned else None

    def _critic_inputs(self, observation: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        parts = [observation, action]
        if self.config.conditioned:
            parts.append(weight.unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    def _value_weights(self, inputs: StepInputs) -> tuple[Tensor | float, Tensor | float]:
        """(mu, phi) of Eq. 6: fixed numbers, or by each sample's safety weight.

        These share out 1 - eta, but near w = 1 the safety counts up to twice as much: what acts where nothing
        bolder fits is to be safe, not to be like the data.
        """
        config = self.config
        if not config.conditioned:
            return config.mu, config.phi
        share, weight = 1.0 - config.eta, inputs.safety_weight
        return share * (1.0 - weight), share * weight * (1.0 + weight**4)

    # ---- what is saved

    def policy_components(self) -> dict[str, Any]:
        """What acts: the moving average of the noise model, both critics, and the scheduler."""
        return {
            "noise_model": self.ema_noise_model,
            "reward_critic": self.reward_critic,
            "safety_critic": self.safety_critic,
            "scheduler": make_scheduler(self.config),
        }

    def refresh(self) -> None:
        """Bring all copies of the weights up to date."""
        super().refresh()
        self._frozen_critics.refresh()
