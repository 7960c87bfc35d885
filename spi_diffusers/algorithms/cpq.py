"""CPQ: constraints penalized Q-learning.

Source: Xu, Zhan and Zhu, "Constraints Penalized Q-Learning for Safe Offline Reinforcement Learning" (2022),
with the settings of the DSRL benchmark (Liu et al. 2023). One update, top-down: the cost critics learn the
policy's cost; the reward critics count a next state only where its cost keeps the limit; and the policy
climbs Q^r there.

With `ood_penalty`, the cost critics also learn that actions outside the data, as a VAE tells them, are
costly. That is in the paper, but has no effect in the benchmark's code, whose penalty carries no gradient,
and is off by default: the penalty propagates to the values of all earlier states. With a discount of 0.99 a
policy that leaves the data at one step in a hundred already looks half as costly everywhere as if it always
did. On BallCircle (limit 10, one seed) the share of actions that count as within the limit fell from 0.87 to
0.58 between updates 300 and 1,500; without the penalty it was 0.92.

The policy has no gradient where Q^c is above the threshold, as the indicator is not differentiated. So it
must be slower than the critics. While some sampled actions keep the limit they pull the policy back; once
none does, its gradient is zero and it stays beyond the threshold.

A next state beyond the threshold has the value 0, as in the paper. Where values are negative, that is more
than any of them, and unsafe states attract: rewards should not be negative for the most part.

Which actions count as outside the data is decided within the batch of one process, so that a run on several
processes differs a little from a run on one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Batch, Draw, Metrics, PolicySizes
from spi_diffusers.algorithms.constrained import (
    ConstrainedCritics,
    LogAlpha,
    batch_vae_loss,
    latent_divergence,
    make_critics,
)
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import CPQConfig
from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.actors import GaussianActor


def constrained_value(reward_value: Tensor, cost_value: Tensor, threshold: float) -> Tensor:
    """1[Q^c <= threshold] Q^r, each of shape (B,): what is backed up, and what the policy climbs."""
    return reward_value.masked_fill(cost_value > threshold, 0.0)


def outside_data(divergence: Tensor, data_divergence: Tensor, quantile: float) -> Tensor:
    """Indices of the actions that count as outside the data; may be empty.

    The host must know how many there are: here, and nowhere else in an update, it waits for a GPU.

    Args:
        divergence: Of the actions' latents from the prior, shape (M,).
        data_divergence: The same of recorded actions, shape (B,).
        quantile: Of the recorded actions' divergence, which is the paper's bound d; in [0, 1].
    """
    return (divergence > data_divergence.quantile(quantile)).nonzero().squeeze(1)


def ood_penalty(cost_values: Tensor, alpha: Tensor | float, threshold: float) -> Tensor:
    """-alpha min(E[Q^c] - threshold, 0): raises the cost of actions outside the data up to the threshold.

    The minimum is ours. Without it the rise ends only by alpha's descent; at the benchmark's step of alpha
    the values of a task with a small threshold reach hundreds before that.

    Args:
        cost_values: Of every critic, shape (P, 2, B); summed over critics, as the critics' own loss is.
        alpha: Weight, detached.
        threshold: Discounted cost that actions outside the data should have.
    """
    return -alpha * (cost_values.mean(dim=-1) - threshold).clamp_max(0.0).sum()


class CPQ(Algorithm):
    """CPQ's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: CPQConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        dims: dict[str, Any] = {"observation_dim": sizes.observation_dim, "action_dim": sizes.action_dim}
        self.actor = GaussianActor(**dims, hidden_dims=list(config.hidden_dims)).to(compute.device)
        reward, cost = ([c.to(compute.device) for c in make_critics(config, sizes)] for _ in range(2))
        self.log_alpha = LogAlpha().to(compute.device)
        self.critics = ConstrainedCritics(config, sizes, compute, reward=reward, cost=cost)
        self._actor = Learner(self.actor, config.actor_learning_rate, compute)
        self.learners = {"actor": self._actor, "critics": self.critics.learner}
        self._vae: Learner[ActionVAE] | None = None
        if config.ood_penalty:
            vae = ActionVAE(**dims, hidden_dim=config.vae_hidden_dim).to(compute.device)
            self.learners["vae"] = self._vae = Learner(vae, config.learning_rate, compute)
            self.state = {"log_alpha": self.log_alpha}
        self._reduce = compute.reduce_gradients

    @classmethod
    def draws(cls, config: CPQConfig, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Noise of the policy's actions; with the penalty also the VAE's latents, of size 2 A."""
        actions = {name: Draw((batch_size, 1, action_dim)) for name in ("next_action_noise", "action_noise")}
        if not config.ood_penalty:
            return actions
        tested = Draw((batch_size, config.num_candidates, action_dim))
        return {"encoding": Draw((batch_size, 2 * action_dim)), "tested_action_noise": tested, **actions}

    def next_values(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r, where the cost keeps the limit, and Q^c of the next states (B,), from noise (B, 1, A)."""
        with torch.no_grad():
            next_action = self._actor.module.draw_raw(batch.next_observation, noise).tanh()
            reward_value, cost_value = self.critics.candidate_values(batch.next_observation, next_action)
            reward_value, cost_value = reward_value.squeeze(1), cost_value.squeeze(1)
            return constrained_value(reward_value, cost_value, self.critics.threshold), cost_value

    def outside_loss(
        self, vae: ActionVAE, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The penalty of policy actions outside the data, their mean cost, and metrics; noise (B, N, A)."""

        def divergence(observation: Tensor, action: Tensor) -> Tensor:
            return latent_divergence(*vae.encode(observation, action)).mean(dim=-1)

        with torch.no_grad():
            tested = self._actor.module.draw_raw(batch.observation, noise).tanh().flatten(0, 1)
            observation = batch.observation.repeat_interleave(self.config.num_candidates, dim=0)
            recorded = divergence(batch.observation, batch.action)
            outside = outside_data(divergence(observation, tested), recorded, self.config.ood_quantile)
        alpha, threshold = self.log_alpha.alpha(), self._outside_threshold
        penalty, mean_cost = torch.zeros_like(alpha), torch.full_like(alpha, threshold)  # none: all is well
        if len(outside) > 0:
            _, cost = self.critics.values(observation[outside], tested[outside])
            penalty, mean_cost = ood_penalty(cost, alpha, threshold), cost.detach().mean()
        if self._reduce is not None:
            self._reduce([mean_cost])
        share = torch.full_like(mean_cost, len(outside) / len(tested))
        return penalty, mean_cost, {"critic/ood_share": share, "critic/ood_cost_value": mean_cost}

    def policy_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Minus Q^r where Q^c keeps the limit, of one action per state drawn from noise (B, 1, A)."""
        action = self._actor.module.draw_raw(batch.observation, noise).tanh().squeeze(1)
        reward_value, cost_value = self.critics.policy_values(batch.observation, action)
        cost_value = cost_value.detach()
        loss = -constrained_value(reward_value, cost_value, self.critics.threshold).mean()
        return loss, {
            "policy/reward_value": reward_value.detach().mean(),
            "policy/cost_value": cost_value.mean(),
            "policy/share_within": (cost_value <= self.critics.threshold).float().mean(),
        }

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        config = self.config
        metrics: Metrics = {}
        penalty: Tensor | None = None
        if self._vae is not None:
            loss, metrics = batch_vae_loss(self._vae.module, batch, noise["encoding"], config.kl_weight)
            self._vae.step(loss)
            penalty, outside_cost, outside_metrics = self.outside_loss(
                self._vae.module, batch, noise["tested_action_noise"]
            )
            # Alpha's dual ascent: more weight while actions outside the data look cheaper than they should.
            gap = self._outside_threshold - outside_cost
            self.log_alpha.climb(config.alpha_learning_rate * self.log_alpha.alpha() * gap)
            metrics |= outside_metrics | {"critic/alpha": self.log_alpha.alpha()}

        next_reward, next_cost = self.next_values(batch, noise["next_action_noise"])
        loss, critic_metrics = self.critics.loss(batch, next_reward, next_cost)
        self.critics.learner.step(loss if penalty is None else loss + penalty)

        loss, policy_metrics = self.policy_loss(batch, noise["action_noise"])
        self._actor.step(loss)
        self.critics.learner.update_target(config.target_update_rate)
        return metrics | critic_metrics | policy_metrics

    @property
    def _outside_threshold(self) -> float:
        # Above the limit, not at it: at it they would still count as allowed.
        return self.config.ood_cost_scale * self.critics.threshold
