"""A policy whose critic's rates are known, and data of constant steps: for estimates by hand."""

import numpy as np
import torch

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import EvaluationCritic, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.models.evaluation_critic import NUM_LEVELS
from spi_diffusers.pipelines import SPIPolicyPipeline

STEPS = 10


def make_policy(critic: bool = True, action: float | None = None, **settings) -> SPIPolicyPipeline:
    """At a safety weight w, a step earns 1 - w and costs 1.35 - w; the worst quarter costs 1.4 more in all.

    `action` is what it always does, 1 or -1; None: those of random weights.
    """
    torch.manual_seed(0)
    shared = {"observation_dim": 1, "action_dim": 1, "hidden_dims": [8]}
    normalizer = ObservationNormalizer(observation_dim=1)
    normalizer.set_statistics(torch.zeros(1), torch.ones(1))
    noise_model = MLPNoiseModel(**shared)
    if action is not None:  # noise so large that what is left without it is clipped
        last = [part for part in noise_model.modules() if isinstance(part, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(-1000.0 * action)
    # In a unit so large, what is added does not depend on the cost that is expected.
    unit = 1e6
    known = EvaluationCritic(1, 1, STEPS, [-10.0, 10.0], 10.0, cost_unit=unit, hidden_dims=[])
    with torch.no_grad():
        weight, bias = known.net[0].weight.zero_(), known.net[0].bias.zero_()
        weight[0, 2], bias[0] = -0.5, 0.5  # the input is 2 w - 1
        weight[1, 2], bias[1] = -0.5, 0.85
        known.residuals[..., NUM_LEVELS * 3 // 4 :] = 1.4 / unit
    return SPIPolicyPipeline(
        noise_model=noise_model,
        reward_critic=TwinCritic(**shared),
        safety_critic=TwinCritic(**shared),
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        evaluation_critic=known if critic else None,
        max_episode_steps=STEPS,
        **settings,
    )


def make_data(episodes=20, length=STEPS, reward=0.7, cost=1.0, ends=False, actions=(-1.0, 1.0), width=1):
    """Episodes whose steps all earn `reward` and cost `cost`, numbers or one per episode."""
    rng = np.random.default_rng(0)
    rows = episodes * length
    last = np.arange(rows) % length == length - 1
    return TransitionDataset.from_columns(
        {
            "observation": rng.normal(size=(rows, width)),
            "next_observation": rng.normal(size=(rows, width)),
            "action": rng.choice(actions, size=(rows, 1)),
            "reward": np.repeat(np.broadcast_to(reward, episodes), length),
            "cost": np.repeat(np.broadcast_to(cost, episodes), length),
            "terminated": last & ends,
            "truncated": last & (not ends),
        }
    )


def trained_on(
    policy: SPIPolicyPipeline, data: TransitionDataset, dataset=None, **config
) -> SPIPolicyPipeline:
    """The policy with the record of a training on data, with a tenth of the episodes held out."""
    info = {"algorithm": "spi", "train_seed": 3, "updates": 10, "train_seconds": 1.5}
    policy.training_record = {
        "config": {"seed": 3, "holdout": 0.1, "dataset": None if dataset is None else str(dataset), **config},
        "info": {**info, "dataset": {"id": data.source, "sha256": data.sha256}},
    }
    return policy
