"""What the constrained baselines share: thresholds, multipliers, the action VAE, and critics of two signals.

Used by BCQ-Lag, BEAR-Lag, CPQ and, in part, COptiDICE.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.losses import td_loss, td_target
from spi_diffusers.algorithms.networks import Compute, CriticStack, Learner
from spi_diffusers.config.algorithm_settings import ConstrainedConfig, LagrangianConfig
from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.critics import TwinCritic

#: Rows of one pass without gradients. Larger passes get their memory from the system anew each time, which
#: takes as long as the arithmetic.
_ROWS_PER_PASS = 512


# ---- from a cost limit to a multiplier


def cost_threshold(sizes: PolicySizes, gamma: float, *, finite: bool = False) -> float:
    """The discounted cost of a policy that spends its limit evenly: c = limit / T at each of T steps.

    Args:
        sizes: The cost limit of an episode, and its length T.
        gamma: Discount factor of the cost critic, in [0, 1).
        finite: c (1 - gamma^T) / (1 - gamma), the cost of an episode seen from its first step; instead of
            c + gamma c + ... = c / (1 - gamma), for a critic that looks beyond a time limit, as one must
            that does not see the clock.

    Returns:
        The threshold, in units of discounted cost.
    """
    discounted_steps = 1.0 / (1.0 - gamma)
    if finite:
        discounted_steps *= 1.0 - gamma**sizes.max_episode_steps
    return sizes.cost_limit / sizes.max_episode_steps * discounted_steps


class PIDLagrangian(nn.Module):
    """A Lagrange multiplier driven by a PID controller, whose state is in buffers for the checkpoint.

    lambda = K_P [e]+ + K_I I + K_D [e - e_previous]+ with I <- [I + e]+. Only growth of the violation counts
    for the derivative, and the integral never goes below zero, so a kept constraint is paid for with no
    negative multiplier. Source: Stooke, Achiam and Abbeel, "Responsive Safety in Reinforcement Learning by
    PID Lagrangian Methods" (2020), algorithm 2; the proportional part is cut at zero as in the DSRL
    benchmark.

    Args:
        config: The gains K_P, K_I and K_D.
        compute: Device and processes.
    """

    integral: Tensor
    previous_error: Tensor
    multiplier: Tensor

    def __init__(self, config: LagrangianConfig, compute: Compute):
        super().__init__()
        self._gains = (config.proportional, config.integral, config.derivative)
        self._reduce = compute.reduce_gradients
        for name in ("integral", "previous_error", "multiplier"):
            self.register_buffer(name, torch.zeros((), device=compute.device))

    @torch.no_grad()
    def update(self, error: Tensor) -> Tensor:
        """Take the violation e of this update, a scalar and overwritten, and return the multiplier."""
        if self._reduce is not None:
            self._reduce([error])
        proportional, integral, derivative = self._gains
        self.integral.copy_((self.integral + error).clamp_min(0.0))
        multiplier = proportional * error.clamp_min(0.0) + integral * self.integral
        self.multiplier.copy_(multiplier + derivative * (error - self.previous_error).clamp_min(0.0))
        self.previous_error.copy_(error)
        return self.multiplier


#: Bounds of log alpha, as in the DSRL benchmark's code: no constraint is forgotten, and none drowns
#: everything else for good.
LOG_ALPHA_RANGE = 5.0


class LogAlpha(nn.Module):
    """The logarithm of a multiplier alpha, as a module so that a checkpoint holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def alpha(self) -> Tensor:
        """Alpha, detached."""
        return self.value.detach().exp()

    @torch.no_grad()
    def climb(self, step: Tensor | float = 0.0) -> None:
        """Add a step, and keep within the bounds."""
        self.value.add_(step).clamp_(-LOG_ALPHA_RANGE, LOG_ALPHA_RANGE)


# ---- the data's actions: a VAE, and a distance from them


def latent_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) = -1/2 (1 + log std^2 - mean^2 - std^2), of each element."""
    return -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp())


def vae_loss(
    reconstruction: Tensor, action: Tensor, mean: Tensor, log_std: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Negative evidence lower bound of the action VAE, in its two parts.

    The reconstruction part is the mean over batch and action dimensions of (a_hat - a)^2. The other is
    `kl_weight` times the mean over batch and latent dimensions of `latent_divergence`.

    Args:
        reconstruction: Shape (B, A).
        action: Shape (B, A).
        mean: Mean of the latent, shape (B, L).
        log_std: Log standard deviation of the latent, shape (B, L).
        kl_weight: 0.5 in BCQ.

    Returns:
        Reconstruction loss and weighted divergence, scalars; their sum is to be minimized.
    """
    divergence = latent_divergence(mean, log_std).mean()
    return functional.mse_loss(reconstruction, action), kl_weight * divergence


def batch_vae_loss(
    vae: ActionVAE, batch: Batch, noise: Tensor, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`vae_loss` of a batch, summed, and both of its parts for the log; `noise` (B, L) is standard normal."""
    reconstruction, mean, log_std = vae(batch.observation, batch.action, noise)
    error, divergence = vae_loss(reconstruction, batch.action, mean, log_std, kl_weight)
    metrics = {"vae/reconstruction_loss": error.detach(), "vae/divergence": divergence.detach()}
    return error + divergence, metrics


def mmd(first: Tensor, second: Tensor, kernel: str, sigma: float) -> Tensor:
    """Distance of two sets of actions per state: sqrt(mean k(x, x') - 2 mean k(x, y) + mean k(y, y')).

    All pairs count, also an action with itself. Kernels: "laplacian" exp(-|x - y|_1 / (2 sigma)) and
    "gaussian" exp(-|x - y|_2^2 / (2 sigma)); sigma is not squared. Source: Kumar, Fu, Tucker and Levine,
    "Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction" (2019), section 5.

    Args:
        first: N actions for each of B states, shape (B, N, A).
        second: M actions for each of B states, shape (B, M, A).
        kernel: "laplacian" or "gaussian".
        sigma: Width of the kernel.

    Returns:
        Shape (B,); at least 0.001, as 1e-6 below the root keeps its gradient finite.
    """
    # One kernel matrix of all actions together: few large operations instead of three times as many.
    both = torch.cat([first, second], dim=1)
    difference = both.unsqueeze(2) - both.unsqueeze(1)
    powers = difference.abs() if kernel == "laplacian" else difference.square()
    similarity = (powers.sum(dim=-1) * (-0.5 / sigma)).exp()
    n, m = first.shape[1], second.shape[1]
    weights = torch.cat([first.new_full((n,), 1.0 / n), first.new_full((m,), -1.0 / m)])
    squared = (similarity @ weights) @ weights
    # Rounding can lead a little below zero.
    return (squared.clamp_min(0.0) + 1e-6).sqrt()


# ---- critics of reward and cost, all networks in one batched pass


def soft_clipped_value(values: Tensor, weight: float, *, pessimistic: str = "low") -> Tensor:
    """BCQ's value of an action from several critics: w * the worse twin + (1 - w) * the better twin.

    With several pairs of twins, a twin's value is first the worst over the pairs. For rewards the worse side
    is the lower one; for costs it is the higher one. Source: Fujimoto et al. (2019), equation 13.

    Args:
        values: P pairs of twins, shape (P, 2, ...).
        weight: w, 0.75 in BCQ; 1 is clipped double Q-learning.
        pessimistic: Which side is the worse: "low" or "high".

    Returns:
        Shape (...).
    """
    if pessimistic == "low":
        twins = values.amin(dim=0)
        return weight * twins.amin(dim=0) + (1.0 - weight) * twins.amax(dim=0)
    twins = values.amax(dim=0)
    return weight * twins.amax(dim=0) + (1.0 - weight) * twins.amin(dim=0)


def make_critics(config: ConstrainedConfig, sizes: PolicySizes) -> list[TwinCritic]:
    """Fresh critics of one signal, as many pairs of twins as configured."""
    return [
        TwinCritic(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            hidden_dims=list(config.hidden_dims),
            activation="relu",
            use_safety_weight=False,
        )
        for _ in range(config.critic_pairs)
    ]


class ConstrainedCritics:
    """P pairs of twin critics for the reward, and as many for the cost, with their targets.

    Args:
        config: Discount, learning rate, and how values are learned.
        sizes: The cost limit and the length of an episode, for the threshold.
        compute: Compute dtype and processes.
        reward: Reward critics Q^r, trained in place.
        cost: Cost critics Q^c, as many.

    Attributes:
        threshold: Largest discounted cost that keeps the limit.
        learner: All critics in training.
    """

    def __init__(
        self,
        config: ConstrainedConfig,
        sizes: PolicySizes,
        compute: Compute,
        *,
        reward: Sequence[TwinCritic],
        cost: Sequence[TwinCritic],
    ):
        self.config = config
        self.threshold = cost_threshold(sizes, config.gamma, finite=config.benchmark_targets)
        self._cost_side = "low" if config.benchmark_targets else "high"
        stack = CriticStack([*reward, *cost])
        for layer in stack.net:
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # fresh memory for activations takes longer than computing them
        self.learner = Learner(stack, config.learning_rate, compute, follows=True)

    @torch.no_grad()
    def candidate_values(self, observation: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Soft-clipped target values of N candidate actions per state.

        Args:
            observation: Shape (B, O).
            candidates: Shape (B, N, A).

        Returns:
            Q^r and Q^c, each of shape (B, N).
        """
        size, number, _ = candidates.shape
        repeated = observation.unsqueeze(1).expand(-1, number, -1)
        inputs = torch.cat([repeated, candidates], dim=-1).flatten(0, 1)
        target = self.learner.target_module
        values = torch.cat([target(rows) for rows in inputs.split(_ROWS_PER_PASS)], dim=2)
        reward, cost = self._split(values)
        weight = self.config.soft_clip_weight
        reward_value = soft_clipped_value(reward, weight)
        cost_value = soft_clipped_value(cost, weight, pessimistic=self._cost_side)
        return reward_value.view(size, number), cost_value.view(size, number)

    def values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r and Q^c of every critic in training, each (P, 2, B), of (B, O) and (B, A)."""
        return self._split(self.learner.module(torch.cat([observation, action], dim=-1)))

    def policy_values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The worst Q^r and the worst Q^c of one action per state, each (B,), for the action to climb."""
        reward, cost = self.values(observation, action)
        cost = cost.flatten(0, 1)
        cost_value = cost.amax(dim=0) if self._cost_side == "high" else cost.amin(dim=0)
        return reward.flatten(0, 1).amin(dim=0), cost_value

    def loss(
        self, batch: Batch, reward_value: Tensor, cost_value: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The temporal-difference loss of all critics.

        Args:
            batch: Transitions.
            reward_value: Q^r of the next states, shape (B,).
            cost_value: Q^c of the next states, shape (B,).

        Returns:
            The loss, a scalar, and metrics, detached.
        """
        config = self.config
        ended, cost_ended = batch.terminated, batch.terminated
        if config.benchmark_targets:
            ended, cost_ended = ended | batch.truncated, torch.zeros_like(ended)
        reward_target = td_target(config.reward_scale * batch.reward, reward_value, ended, config.gamma)
        cost_target = td_target(batch.cost, cost_value, cost_ended, config.gamma)
        reward, cost = self.values(batch.observation, batch.action)
        # One loss per pair of twins.
        reward_loss, cost_loss = td_loss(reward, reward_target).sum(), td_loss(cost, cost_target).sum()
        return reward_loss + cost_loss, {
            "critic/reward_loss": reward_loss.detach(),
            "critic/cost_loss": cost_loss.detach(),
            "critic/reward_value": reward.detach().mean(),
            "critic/cost_value": cost.detach().mean(),
        }

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values (2 P, 2, B) of the stack as reward and cost, each (P, 2, B)."""
        reward, cost = values.split(self.config.critic_pairs)
        return reward, cost
