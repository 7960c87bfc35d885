"""BCQ-Lag: batch-constrained Q-learning with a Lagrange multiplier on the cost.

Source: Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (2019), with
the PID multiplier and the settings of the DSRL benchmark (Liu et al. 2023). One update, top-down: the VAE
learns the data's actions; the critics learn the value of the best of a few such actions, perturbed; and the
perturbation model climbs Q^r - lambda Q^c.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim import Optimizer

from spi_diffusers.algorithms.base import Baseline, Batch, PolicySizes
from spi_diffusers.algorithms.constrained import ConstrainedCritics, PIDLagrangian, make_critics, update_vae
from spi_diffusers.algorithms.networks import Learner
from spi_diffusers.config.algorithms import BCQLagConfig
from spi_diffusers.models.batch_constrained_actor import BatchConstrainedActor


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
    """Mean of -Q^r + lambda (Q^c - threshold) over the batch, the Lagrangian to be minimised.

    Args:
        reward_value: Q^r of the perturbed actions, shape (B,).
        cost_value: Q^c of the perturbed actions, shape (B,).
        multiplier: lambda, detached.
        threshold: Largest discounted cost.
    """
    return (multiplier * (cost_value - threshold) - reward_value).mean()


class BCQLag(Baseline):
    """BCQ-Lag's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        dtype: Compute dtype, float32 or bfloat16; weights and optimisers stay float32.
        reduce_gradients: Averages a list of tensors over processes, in place; None for one process.
        device: Where training runs.
    """

    name: ClassVar[str] = "bcq-lag"

    def __init__(
        self,
        config: BCQLagConfig,
        sizes: PolicySizes,
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ):
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
        ).to(device)
        # The policy keeps only the critics that it selects by; all of them are trained.
        kept = (self.actor.reward_critics, self.actor.cost_critics)
        critics = (list(own) or [c.to(device) for c in make_critics(config, sizes)] for own in kept)
        self.lagrangian = PIDLagrangian(config.proportional, config.integral, config.derivative).to(device)
        shared: dict[str, Any] = {"dtype": dtype, "reduce_gradients": reduce_gradients}
        rate = config.target_update_rate
        self.critics = ConstrainedCritics(config, sizes, *critics, **shared)
        self._vae = Learner(self.actor.vae, config.learning_rate, **shared)
        self._perturbation = Learner(
            self.actor.perturbation, config.learning_rate, target_update_rate=rate, **shared
        )
        self._reduce = reduce_gradients

    @classmethod
    def noise_shapes(
        cls, config: BCQLagConfig, batch_size: int, action_dim: int
    ) -> dict[str, tuple[int, ...]]:
        """Standard normal tensors that an update needs: latents of size 2 A."""
        latent = 2 * action_dim
        return {
            "encoding": (batch_size, latent),
            "next_latent": (batch_size, config.num_candidates, latent),
            "latent": (batch_size, latent),
        }

    def update(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One training step; returns metrics as detached scalars."""
        metrics = update_vae(self._vae, batch, noise["encoding"], self.config.kl_weight)
        critic_metrics, policy_cost = self._update_critics(batch, noise["next_latent"])
        metrics |= critic_metrics | self._update_perturbation(batch, noise["latent"], policy_cost)
        self.critics.learner.update_target()
        self._perturbation.update_target()
        return metrics

    def _update_critics(self, batch: Batch, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
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

    def _update_perturbation(self, batch: Batch, noise: Tensor, policy_cost: Tensor) -> dict[str, Tensor]:
        clip = self.config.latent_clip
        with torch.no_grad():
            drawn = self._vae.module.decode(batch.observation, noise.clamp(-clip, clip))
        action = self._perturbation.module(batch.observation, drawn)
        reward_value, cost_value = self.critics.policy_values(batch.observation, action)
        if self.config.selection == "sample" or self.config.benchmark_targets:
            # The policy acts with any candidate, not with a chosen one; and the benchmark's code looks at the
            # action of the perturbation model, as the next state's cost is that of its costliest candidate.
            policy_cost = cost_value.detach()
        error = policy_cost.mean() - self.critics.threshold
        if self._reduce is not None:
            self._reduce([error])
        multiplier = self.lagrangian.update(error)
        self.actor.multiplier.copy_(multiplier)
        self._perturbation.step(
            perturbation_loss(reward_value, cost_value, multiplier, self.critics.threshold)
        )
        return {
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": policy_cost.mean(),
            "policy/multiplier": multiplier.clone(),
        }

    def modules(self) -> dict[str, nn.Module]:
        """Everything to checkpoint."""
        assert self._perturbation.target is not None
        return {
            "vae": self.actor.vae,
            "perturbation": self.actor.perturbation,
            "target_perturbation": self._perturbation.target,
            "lagrangian": self.lagrangian,
            **self.critics.modules(),
        }

    def optimizers(self) -> dict[str, Optimizer]:
        """Every network's optimiser."""
        return {
            "vae": self._vae.optimizer,
            "perturbation": self._perturbation.optimizer,
            "critics": self.critics.learner.optimizer,
        }

    def policy_components(self) -> dict[str, ModelMixin]:
        """What acts."""
        return {"actor": self.actor}

    def refresh_replicas(self) -> None:
        """Copy the weights into the compute replicas; call it after loading weights."""
        for learner in (self._vae, self._perturbation, self.critics.learner):
            learner.refresh()
        self.actor.multiplier.copy_(self.lagrangian.multiplier)
