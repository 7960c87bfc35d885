"""After training: the evaluation critic learns from the data what the finished policy earns and costs.

Fitted Q evaluation, with the number of steps left as an input instead of a discount, and with the cost's
distribution as quantiles (QR-DQN, Dabney et al. 2018):

    h Q_h(s, a, w) = x + (1 - terminated) (h - 1) Q_{h-1}(s', a', w),   a' ~ policy of the safety weight w

for the reward and for the cost x of a transition. It needs no simulator, and no scale of the data.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models.evaluation_critic import EvaluationCritic
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID
from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline
from spi_diffusers.progress import progress_bar

BATCH_SIZE = 256
LEARNING_RATE = 1e-3
TARGET_UPDATE_RATE = 0.05
MAX_GRAD_NORM = 10.0
#: Where the quantile loss turns from a square to a line, in units of the mean cost (kappa of QR-DQN).
HUBER_WIDTH = 0.1
#: How much more the cost's loss counts than the reward's, both in units of the data.
COST_SHARE = 4.0
#: Part of the updates in which the number of steps grows from 2 to all: what happens in a few steps must be
#: known before what happens in many can be.
GROWTH_SHARE = 0.7


def fit_evaluation_critic(
    pipeline: SPIPolicyPipeline,
    dataset: TransitionDataset,
    *,
    updates: int,
    seed: int = 0,
    progress: bool = True,
) -> EvaluationCritic:
    """Evaluate a trained policy on data, for every safety weight and number of steps left.

    Args:
        pipeline: The policy, conditioned on a safety weight, whose `max_episode_steps` is known.
        dataset: Transitions.
        updates: Number of updates.
        seed: Decides weights and all randomness.
        progress: Whether to show a progress bar.

    Returns:
        The critic, on the CPU.

    Raises:
        ValueError: The episode length is not known, or a loss is no longer finite.
    """
    horizon = pipeline.config.max_episode_steps
    if horizon is None:
        raise ValueError("The evaluation critic needs a pipeline that knows max_episode_steps.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = _new_critic(pipeline, dataset, horizon)
    target = copy.deepcopy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    data = _Data(pipeline, dataset)
    bar = progress_bar(total=updates, desc="evaluating", unit=" updates", disable=not progress)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * update / updates))
        longest = max(2, min(horizon, int(horizon * update / (GROWTH_SHARE * updates))))
        loss = _loss(critic, target, data.draw(longest, generator), pipeline, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(critic.parameters()), TARGET_UPDATE_RATE)
        bar.update()
        if update % 500 == 0 or update + 1 == updates:
            bar.set_postfix_str(f"loss={loss.item():.3g}, steps={longest}")
            if not math.isfinite(loss.item()):
                raise ValueError(f"The evaluation critic's loss is {loss.item()} after {update + 1} updates.")
    bar.close()
    return target.eval()


def _new_critic(pipeline: SPIPolicyPipeline, dataset: TransitionDataset, horizon: int) -> EvaluationCritic:
    network, data = pipeline.noise_model.config, dataset.transitions
    reward, cost = data.reward.double(), data.cost.double()
    critic = EvaluationCritic(
        observation_dim=network.observation_dim,
        action_dim=network.action_dim,
        max_episode_steps=horizon,
        reward_range=[min(0.0, float(reward.min())), max(0.0, float(reward.max()))],
        cost_high=float(cost.max()),
        reward_unit=Units.of(dataset).reward,
        cost_unit=float(cost.mean()) or 1.0,
        hidden_dims=list(network.hidden_dims),
        activation=network.activation,
    )
    # It starts from the data's mean rates for any number of steps. From zero, what happens in many steps
    # would be underestimated for as long as it has not come through.
    with torch.no_grad():
        critic.net[-1].weight.zero_()
        critic.net[-1].bias[0] = float(reward.mean()) / critic.config.reward_unit
        critic.net[-1].bias[1:] = math.log(math.e - 1.0)  # of which softplus makes 1
    return critic


@dataclass(frozen=True)
class _Batch:
    """Transitions (B, ...), with a safety weight and a number of steps left (B,) for each."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor
    cost: Tensor
    alive: Tensor
    safety_weight: Tensor
    steps: Tensor


class _Data:
    """The dataset as the critic sees it: observations normalized, actions in [-1, 1]."""

    def __init__(self, pipeline: SPIPolicyPipeline, dataset: TransitionDataset):
        data = dataset.transitions
        self._columns = {
            "observation": pipeline.normalizer(data.observation),
            # Data without a DSRL task may hold actions that its environment clipped, as the sampler does too.
            "action": pipeline.noise_model.from_environment_range(data.action).clamp(-1.0, 1.0),
            "next_observation": pipeline.normalizer(data.next_observation),
            "reward": data.reward.float(),
            "cost": data.cost.float(),
            "alive": (~data.terminated).float(),
        }
        self._grid = torch.tensor(SAFETY_WEIGHT_GRID, dtype=torch.float32)

    def draw(self, longest: int, generator: torch.Generator) -> _Batch:
        """A batch with safety weights of the grid, and 1 to `longest` steps left."""
        rows = torch.randint(len(self._columns["reward"]), (BATCH_SIZE,), generator=generator)
        weights = self._grid[torch.randint(len(self._grid), (BATCH_SIZE,), generator=generator)]
        steps = torch.randint(1, longest + 1, (BATCH_SIZE,), generator=generator).float()
        columns = {name: column[rows] for name, column in self._columns.items()}
        return _Batch(**columns, safety_weight=weights, steps=steps)


def _loss(
    critic: EvaluationCritic,
    target: EvaluationCritic,
    batch: _Batch,
    pipeline: SPIPolicyPipeline,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the reward rate plus quantile loss of the cost rates, in units of the data."""
    weight, steps, config = batch.safety_weight, batch.steps, critic.config
    with torch.no_grad():
        following = batch.next_observation
        action = pipeline.noise_model.sample(pipeline.scheduler, following, weight, None, generator)
        later = target(following, action, weight, (steps - 1.0).clamp_min(1.0), return_dict=False)
        remaining = batch.alive * (steps - 1.0)
        reward_target = (batch.reward + remaining * later[0]) / steps
        cost_target = (batch.cost.unsqueeze(1) + remaining.unsqueeze(1) * later[1]) / steps.unsqueeze(1)
    reward_rate, cost_rates = critic.unbounded(batch.observation, batch.action, weight, steps)
    reward_loss = functional.mse_loss(reward_rate / config.reward_unit, reward_target / config.reward_unit)
    error = (cost_target.unsqueeze(1) - cost_rates.unsqueeze(2)) / config.cost_unit
    return reward_loss + COST_SHARE * quantile_loss(error)


def quantile_loss(error: Tensor) -> Tensor:
    """Quantile Huber loss of QR-DQN, averaged.

    Args:
        error: Target minus prediction, shape (B, Q, Q'): of Q predicted quantiles and Q' targets.
    """
    count = error.shape[1]
    levels = ((torch.arange(count, dtype=error.dtype) + 0.5) / count).unsqueeze(1)
    size = error.abs()
    huber = torch.where(size <= HUBER_WIDTH, 0.5 * error.square() / HUBER_WIDTH, size - 0.5 * HUBER_WIDTH)
    return ((levels - (error < 0).to(error.dtype)).abs() * huber).mean()
