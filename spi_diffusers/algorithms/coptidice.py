"""COptiDICE: offline constrained RL by estimating how the stationary distribution is to be corrected.

Source: Lee et al., "COptiDICE: Offline Constrained Reinforcement Learning via Stationary Distribution
Correction Estimation" (2022), with the settings of the DSRL benchmark (Liu et al. 2023). Of all distributions
d(s, a) that a policy can have, it looks for the one with the largest E_d[r] - alpha E_data[f(w)] whose cost
E_d[c] keeps the limit, where w = d / d_data. One update, top-down: nu, the multipliers of the flow of
probability through states, gives w in closed form; chi bounds the cost of w from above; lambda rises while
the bound exceeds the limit; and the policy imitates the data, each action as often as w says.

Distributions are normalized: a policy that never ends has E_data[w] = 1, and its cost E_data[w c] is a cost
per step. After a terminated state nothing follows, neither reward nor cost, and nu and chi are 0 there. A
time limit ends nothing.

The limit holds for the weighted data. The policy imitates it as well as one Gaussian can, and its own cost in
the environment may be higher: on CarCircle it is 1.5 to 3.9 times the limit (three seeds, in
results/paper/results.json).

The weights of the bound and of the imitation are normalized within the batch of one process, so that a run on
several processes differs a little from a run on one.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.base import Algorithm, Batch, Metrics, PolicySizes
from spi_diffusers.algorithms.constrained import cost_threshold
from spi_diffusers.algorithms.losses import td_target
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import COptiDICEConfig
from spi_diffusers.models.actors import GaussianActor
from spi_diffusers.models.critics import BatchedLinear

#: Smallest temperature of the bound; below it, exponents would overflow.
MIN_TEMPERATURE = 1e-6


def divergence(ratio: Tensor) -> Tensor:
    """The soft chi-square f(w) of w >= 0: w log w - w + 1 below 1, (w - 1)^2 / 2 above."""
    below = torch.xlogy(ratio, ratio) - ratio + 1.0
    return torch.where(ratio < 1.0, below, 0.5 * (ratio - 1.0).square())


def optimal_ratio(score: Tensor) -> Tensor:
    """w(y) = (f')^-1(y): e^y below 0, y + 1 above; never negative, so that no clipping at 0 is needed.

    Args:
        score: y = e / alpha, any shape.
    """
    # The branch that is not taken is computed too, and its gradient must not be infinite.
    return torch.where(score < 0.0, score.clamp_max(0.0).exp(), score + 1.0)


def conjugate(score: Tensor) -> Tensor:
    """f*(y) = max_w (w y - f(w)), whose derivative is w(y): e^y - 1 below 0, y + y^2 / 2 above."""
    return torch.where(score < 0.0, score.clamp_max(0.0).expm1(), score + 0.5 * score.square())


def nu_loss(initial_value: Tensor, residual: Tensor, alpha: float, gamma: float) -> Tensor:
    """(1 - gamma) E[nu(s0)] + E[w e - alpha f(w)] at the optimal w, that is alpha E[f*(e / alpha)].

    Source: Lee et al. (2022), the dual problem with w in closed form, without the term of the limit.

    Args:
        initial_value: nu of first states, shape (B,).
        residual: e = r - lambda c + gamma nu(s') - nu(s), shape (B,).
        alpha: Weight of the divergence.
        gamma: Discount factor.
    """
    return (1.0 - gamma) * initial_value.mean() + alpha * conjugate(residual / alpha).mean()


def bound_terms(initial_value: Tensor, ratio: Tensor, residual: Tensor, gamma: float) -> Tensor:
    """(1 - gamma) chi(s0) + w (c + gamma chi(s') - chi(s)): the cost of w, if w is a policy's.

    Args:
        initial_value: chi of first states, shape (B,).
        ratio: w, detached, shape (B,).
        residual: c + gamma chi(s') - chi(s), shape (B,).
        gamma: Discount factor.

    Returns:
        One term per sample (s0, s, a, s'), shape (B,).
    """
    return (1.0 - gamma) * initial_value + ratio * residual


def bound_loss(terms: Tensor, temperature: Tensor | float) -> Tensor:
    """tau log E[exp(l / tau)], to be minimized over chi; with + tau epsilon added, also over tau.

    Source: Lee et al. (2022), the upper bound on the cost. Its gradient weights the samples with
    `worst_weights`. The published code minimizes the mean of l under these weights instead, gradient of the
    weights included, which is another function.

    Args:
        terms: l, shape (B,).
        temperature: tau.
    """
    return temperature * (torch.logsumexp(terms / temperature, dim=0) - math.log(len(terms)))


def worst_weights(terms: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """How often each sample counts under the costliest distribution near the data.

    Args:
        terms: l, shape (B,).
        temperature: tau.

    Returns:
        softmax(l / tau) times B, so that their mean is 1, shape (B,); and the Kullback-Leibler divergence of
        that distribution from the data, a scalar.
    """
    log_weights = torch.log_softmax(terms / temperature, dim=0) + math.log(len(terms))
    weights = log_weights.exp()
    return weights, (weights * log_weights).mean()


def multiplier_loss(
    multiplier: Tensor, temperature: Tensor, cost: Tensor, bound_kl: Tensor, threshold: float, epsilon: float
) -> Tensor:
    """lambda (threshold - cost) + tau (epsilon - KL), to be minimized over both multipliers.

    Args:
        multiplier: lambda, rises while the cost exceeds the threshold.
        temperature: tau, rises while the divergence exceeds epsilon.
        cost: The bound on the cost of w, detached.
        bound_kl: Divergence of the costliest distribution near the data, detached.
        threshold: Largest cost per step.
        epsilon: Radius of the ball around the data.
    """
    return multiplier * (threshold - cost) + temperature * (epsilon - bound_kl)


def gaussian_log_density(mean: Tensor, log_std: Tensor, value: Tensor, noise: float = 0.0) -> Tensor:
    """E[log N(value + noise * standard normal; mean, std)], summed over the action's components.

    Args:
        mean: Shape (B, A).
        log_std: Shape (B, A).
        value: Shape (B, A).
        noise: Deviation of the noise, over which the mean is taken in closed form.

    Returns:
        Shape (B,).
    """
    squares = ((value - mean).square() + noise**2) * (-2.0 * log_std).exp()
    return -(0.5 * squares + log_std + 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


def squashed_log_density(
    mean: Tensor, log_std: Tensor, action: Tensor, margin: float, noise: float = 0.0
) -> Tensor:
    """log pi(a|s) of a Gaussian that is squashed by tanh.

    Args:
        mean: Before the tanh, shape (B, A).
        log_std: Before the tanh, shape (B, A).
        action: In [-1, 1], shape (B, A).
        margin: Actions are kept this far from -1 and 1, which no finite value reaches.
        noise: As for `gaussian_log_density`.

    Returns:
        Shape (B,).
    """
    action = action.clamp(margin - 1.0, 1.0 - margin)
    volume = torch.log1p(-action.square()).sum(dim=-1)
    return gaussian_log_density(mean, log_std, action.atanh(), noise) - volume


def imitation_loss(log_density: Tensor, ratio: Tensor) -> Tensor:
    """E[-w log pi(a|s)] / E[w], each of shape (B,); w is detached."""
    return -(ratio * log_density).mean() / ratio.mean().clamp_min(torch.finfo(ratio.dtype).tiny)


class StateValues(nn.Module):
    """K functions of the state; each is the minimum over N MLPs with ReLU.

    Args:
        num_functions: K.
        num_networks: N.
        observation_dim: Size O of an observation.
        hidden_dims: Width of each hidden layer.
    """

    def __init__(
        self, num_functions: int, num_networks: int, observation_dim: int, hidden_dims: Sequence[int]
    ):
        super().__init__()
        self._sizes = (num_functions, num_networks)
        count = num_functions * num_networks
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise([observation_dim, *hidden_dims]):
            layers += [BatchedLinear(count, width_in, width_out), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers)
        self.head = BatchedLinear(count, hidden_dims[-1], 1)

    def forward(self, observation: Tensor) -> Tensor:
        """Values (K, B) in float32, from (B, O)."""
        inputs = observation.to(self.head.weight.dtype)
        hidden = self.net(inputs.expand(self.head.weight.shape[0], -1, -1))
        # The head adds up in float32: what counts is the small difference between a state's value and the
        # next one's, and in bfloat16 values of thirty are rounded to an eighth. As a product and a sum it
        # also takes less time than a matrix product with one column.
        products = hidden * self.head.weight.transpose(1, 2)
        values = products.sum(dim=-1, dtype=torch.float32) + self.head.bias.squeeze(-1)
        return values.unflatten(0, self._sizes).amin(dim=1)


class _Multipliers(nn.Module):
    """lambda and tau, kept in range by clipping.

    Behind a softplus or an exponential they would go on falling while their constraint is slack, and come
    back late.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = nn.Parameter(torch.ones(()))
        self.temperature = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def clip(self) -> None:
        """lambda >= 0, tau > 0."""
        self.cost.clamp_min_(0.0)
        self.temperature.clamp_min_(MIN_TEMPERATURE)


class COptiDICE(Algorithm):
    """COptiDICE's networks in training, and one update of them.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the cost limit to train for.
        compute: Compute dtype, device and processes.

    Attributes:
        threshold: What the bound on the cost per step is compared with.
    """

    def __init__(self, config: COptiDICEConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        # (1 - gamma) c / (1 - gamma): the cost per step of a policy that spends its limit evenly.
        self.threshold = (1.0 - config.gamma) * cost_threshold(sizes, config.gamma)
        if config.benchmark_targets:
            self.threshold = cost_threshold(sizes, config.gamma, finite=True)
        hidden_dims = list(config.hidden_dims)
        self._bounded = config.cost_ub_epsilon > 0  # else there is nothing for chi to do
        functions = 2 if self._bounded else 1
        values = StateValues(functions, config.num_networks, sizes.observation_dim, hidden_dims).to(
            compute.device
        )
        self.multipliers = _Multipliers().to(compute.device)
        self.actor = GaussianActor(
            observation_dim=sizes.observation_dim, action_dim=sizes.action_dim, hidden_dims=hidden_dims
        ).to(compute.device)
        self._actor = Learner(self.actor, config.actor_learning_rate, compute)
        self._values = Learner(values, config.learning_rate, compute)
        exact = replace(compute, dtype=torch.float32)
        self._multipliers = Learner(self.multipliers, config.multiplier_learning_rate, exact)
        self.learners = {"actor": self._actor, "values": self._values, "multipliers": self._multipliers}

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        ratio, cost, bound_kl, metrics = self._update_values(batch)
        metrics |= self._update_multipliers(cost, bound_kl)
        return metrics | self._update_actor(batch, ratio)

    def _update_values(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """A step of nu and chi; returns w, the bound on its cost, and the bound's divergence."""
        config = self.config
        alpha, gamma = config.alpha, config.gamma
        ended = batch.terminated | batch.truncated if config.benchmark_targets else batch.terminated
        states = torch.cat([batch.observation, batch.next_observation, batch.initial_observation])
        values = self._values.module(states).unflatten(1, (3, -1))
        value, next_value, initial_value = values[0]
        reward = config.reward_scale * batch.reward - self.multipliers.cost.detach() * batch.cost
        residual = td_target(reward, next_value, ended, gamma) - value
        loss = nu_loss(initial_value, residual, alpha, gamma)
        ratio = optimal_ratio(residual.detach() / alpha)
        weighted_cost = ratio * batch.cost
        bound, bound_kl = weighted_cost.mean(), torch.zeros_like(loss)
        metrics = {
            "critic/nu_loss": loss.detach(),
            "critic/nu": value.detach().mean(),
            "critic/ratio": ratio.mean(),
            "critic/divergence": divergence(ratio).mean(),
            "policy/weighted_cost": bound,
        }
        if self._bounded:
            value, next_value, initial_value = values[1]
            temperature = self.multipliers.temperature.detach()
            residual = td_target(batch.cost, next_value, ended, gamma) - value
            terms = bound_terms(initial_value, ratio, residual, gamma)
            loss = loss + bound_loss(terms, temperature)
            weights, bound_kl = worst_weights(terms.detach(), temperature)
            bound = (weights * weighted_cost).mean()
        self._values.step(loss)
        return ratio, bound, bound_kl, metrics

    def _update_multipliers(self, cost: Tensor, bound_kl: Tensor) -> Metrics:
        both = (self.multipliers.cost, self.multipliers.temperature)
        self._multipliers.step(
            multiplier_loss(*both, cost, bound_kl, self.threshold, self.config.cost_ub_epsilon)
        )
        self.multipliers.clip()
        return {
            "policy/cost_bound": cost,
            "policy/bound_kl": bound_kl,
            "policy/multiplier": self.multipliers.cost.detach().clone(),
            "policy/temperature": self.multipliers.temperature.detach().clone(),
        }

    def _update_actor(self, batch: Batch, ratio: Tensor) -> Metrics:
        config = self.config
        mean, log_std = self._actor.module(batch.observation)
        if config.benchmark_targets:
            log_density = gaussian_log_density(mean, log_std, batch.action, config.action_noise)
        else:
            log_density = squashed_log_density(
                mean, log_std, batch.action, config.action_margin, config.action_noise
            )
        loss = imitation_loss(log_density, ratio)
        self._actor.step(loss)
        return {"policy/imitation_loss": loss.detach()}
