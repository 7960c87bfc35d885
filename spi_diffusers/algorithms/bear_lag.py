"""BEAR-Lag: bootstrapping error accumulation reduction with a Lagrange multiplier on the cost.

Source: Kumar, Fu, Tucker and Levine, "Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction"
(2019), with the PID multiplier and the settings of the DSRL benchmark (Liu et al. 2023). One update,
top-down: a VAE learns the data's actions; the critics learn the value of the policy's actions; and the policy
climbs Q^r - lambda Q^c while it keeps within the support of the VAE's actions, which a second multiplier,
alpha, enforces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from spi_diffusers.algorithms.base import Baseline, Batch, PolicySizes
from spi_diffusers.algorithms.constrained import (
    ConstrainedCritics,
    PIDLagrangian,
    make_critics,
    mmd,
    update_vae,
)
from spi_diffusers.algorithms.networks import Learner
from spi_diffusers.config.algorithms import BEARLagConfig
from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.gaussian_actor import GaussianActor

#: Bounds of log alpha, as in the DSRL benchmark's code: no constraint is forgotten, and none drowns
#: everything else for good.
LOG_ALPHA_RANGE = 5.0


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


class LogAlpha(nn.Module):
    """The logarithm of the discrepancy's multiplier alpha, as a module so that a checkpoint holds it."""

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        #: How many updates were made, which `support_updates` counts.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


class BEARLag(Baseline):
    """BEAR-Lag's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        dtype: Compute dtype, float32 or bfloat16; weights and optimisers stay float32.
        reduce_gradients: Averages a list of tensors over processes, in place; None for one process.
        device: Where training runs.
    """

    name: ClassVar[str] = "bear-lag"

    def __init__(
        self,
        config: BEARLagConfig,
        sizes: PolicySizes,
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.config = config
        dims: dict[str, Any] = {"observation_dim": sizes.observation_dim, "action_dim": sizes.action_dim}
        hidden = {"hidden_dims": list(config.hidden_dims)}
        self.vae = ActionVAE(**dims, hidden_dim=config.vae_hidden_dim).to(device)
        self.actor = GaussianActor(**dims, **hidden).to(device)
        critics = ([c.to(device) for c in make_critics(config, sizes)] for _ in range(2))
        self.lagrangian = PIDLagrangian(config.proportional, config.integral, config.derivative).to(device)
        self.log_alpha = LogAlpha().to(device)
        climb: Any = Adam if config.alpha_optimizer == "adam" else SGD
        self._alpha_optimizer: Optimizer = climb(self.log_alpha.parameters(), lr=config.alpha_learning_rate)
        shared: dict[str, Any] = {"dtype": dtype, "reduce_gradients": reduce_gradients}
        rate = config.target_update_rate
        self.critics = ConstrainedCritics(config, sizes, *critics, **shared)
        self._vae = Learner(self.vae, config.learning_rate, **shared)
        self._actor = Learner(self.actor, config.learning_rate, target_update_rate=rate, **shared)
        self._reduce = reduce_gradients

    @classmethod
    def noise_shapes(
        cls, config: BEARLagConfig, batch_size: int, action_dim: int
    ) -> dict[str, tuple[int, ...]]:
        """Standard normal tensors that an update needs; latents have size 2 A."""
        return {
            "encoding": (batch_size, 2 * action_dim),
            "next_action": (batch_size, config.num_candidates, action_dim),
            "latent": (batch_size, config.mmd_samples, 2 * action_dim),
            "action": (batch_size, config.mmd_samples, action_dim),
        }

    def update(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One training step; returns metrics as detached scalars."""
        metrics = update_vae(self._vae, batch, noise["encoding"], self.config.kl_weight)
        metrics |= self._update_critics(batch, noise["next_action"])
        metrics |= self._update_actor(batch, noise["latent"], noise["action"])
        self.critics.learner.update_target()
        self._actor.update_target()
        return metrics

    def _update_critics(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad():
            drawn = self._actor.target_module.draw_raw(batch.next_observation, noise).tanh()
            reward_value, cost_value = next_values(
                *self.critics.candidate_values(batch.next_observation, drawn),
                costliest=config.benchmark_targets,
            )
        return self.critics.update(batch, reward_value, cost_value)

    def _update_actor(self, batch: Batch, latent: Tensor, noise: Tensor) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad():
            clip = config.latent_clip
            like_data = self._vae.module.decode_raw(batch.observation, latent.clamp(-clip, clip))
        # Before the tanh, where actions at the border still differ.
        drawn = self._actor.module.draw_raw(batch.observation, noise)
        discrepancy = mmd(like_data, drawn, config.kernel, config.mmd_sigma)
        reward_value, cost_value = self.critics.policy_values(batch.observation, drawn[:, 0].tanh())

        error = cost_value.detach().mean() - self.critics.threshold
        mean_discrepancy = discrepancy.detach().mean()
        if self._reduce is not None:
            self._reduce([error, mean_discrepancy])
        multiplier = self.lagrangian.update(error)
        log_alpha = self.log_alpha.value
        climbs = int(self.log_alpha.updates) >= config.support_updates
        loss = actor_loss(
            reward_value,
            cost_value,
            discrepancy,
            log_alpha,
            multiplier,
            self.critics.threshold,
            config.mmd_threshold,
            reward_weight=float(climbs),
        )
        self._actor.step(loss)
        self._alpha_optimizer.zero_grad()
        alpha_loss(log_alpha, mean_discrepancy, config.mmd_threshold).backward()
        self._alpha_optimizer.step()
        with torch.no_grad():
            log_alpha.clamp_(-LOG_ALPHA_RANGE, LOG_ALPHA_RANGE)
            self.log_alpha.updates += 1
        return {
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": cost_value.detach().mean(),
            "policy/multiplier": multiplier.clone(),
            "policy/mmd": mean_discrepancy,
            "policy/alpha": log_alpha.detach().exp(),
        }

    def modules(self) -> dict[str, nn.Module]:
        """Everything to checkpoint."""
        assert self._actor.target is not None
        return {
            "vae": self.vae,
            "actor": self.actor,
            "target_actor": self._actor.target,
            "lagrangian": self.lagrangian,
            "log_alpha": self.log_alpha,
            **self.critics.modules(),
        }

    def optimizers(self) -> dict[str, Optimizer]:
        """Every network's optimiser, and alpha's."""
        return {
            "vae": self._vae.optimizer,
            "actor": self._actor.optimizer,
            "critics": self.critics.learner.optimizer,
            "log_alpha": self._alpha_optimizer,
        }

    def policy_components(self) -> dict[str, ModelMixin]:
        """What acts."""
        return {"actor": self.actor}

    def refresh_replicas(self) -> None:
        """Copy the weights into the compute replicas; call it after loading weights."""
        for learner in (self._vae, self._actor, self.critics.learner):
            learner.refresh()
