"""A policy trained on a toy keeps its limit: short and long episodes, with and without ends, any costs."""

import numpy as np
import pytest
import torch

from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.training.export import add_evaluation_critic
from spi_diffusers.training.trainer import Trainer

pytestmark = pytest.mark.slow
EPISODES = 60


def end_probability(length: int, ends: bool) -> float:
    return 2.0 / length if ends else 0.0


def step(effort: np.ndarray, luck: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Effort in [0, 1] is the reward; it costs 1 with a probability of half its square."""
    return effort, (luck < 0.5 * effort**2).astype(float)


def make_data(length: int, ends: bool, cost: float) -> TransitionDataset:
    """Every episode has an effort of its own, about which it varies."""
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {name: [] for name in ("action", "reward", "cost", "terminated", "truncated")}
    count = max(EPISODES, 20_000 // length)
    for usual in rng.uniform(0, 1, count):
        steps = length
        if ends:
            steps = min(length, int(rng.geometric(end_probability(length, ends))))
        effort = np.clip(usual + 0.15 * rng.normal(size=steps), 0, 1)
        reward, costs = step(effort, rng.random(steps))
        last = np.arange(steps) == steps - 1
        terminated = last & (steps < length)
        for name, values in zip(
            columns, (2 * effort - 1, reward, cost * costs, terminated, last & ~terminated), strict=True
        ):
            columns[name].append(values)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    observation = rng.normal(size=(len(arrays["reward"]) + 1, 2)).astype(np.float32)
    arrays |= {"observation": observation[:-1], "next_observation": observation[1:]}
    arrays["action"] = arrays["action"][:, None]
    return TransitionDataset.from_columns(arrays)


@pytest.mark.parametrize("cost", [0.003, 1.0, 5000.0])
@pytest.mark.parametrize("ends", [False, True], ids=["truncated", "terminated"])
@pytest.mark.parametrize("length", [24, 1000])
def test_a_toy_keeps_its_limit_and_earns(length, ends, cost, tmp_path):
    settings = {"dataset": "memory", "output_dir": str(tmp_path), "updates": 3000, "batch_size": 128}
    settings |= {"device": "cpu", "threads": 1, "mixed_precision": "no", "max_episode_steps": length}
    settings |= {"network.hidden_dims": [64, 64], "network.time_embed_dim": 8}
    trainer = Trainer(make_train_config(settings), make_data(length, ends, cost), progress=False)
    trainer.train()
    policy = trainer.policy()
    add_evaluation_critic(policy, trainer, progress=False)

    limit = 0.2 * length * cost  # what a steady effort of 0.63 costs over a whole episode
    rng, episodes = np.random.default_rng(1), 40
    spent, earned, alive = np.zeros(episodes), np.zeros(episodes), np.ones(episodes, dtype=bool)
    lengths = np.zeros(episodes)
    for left in range(length, 0, -1):
        observation = torch.from_numpy(rng.normal(size=(episodes, 2))).float()
        actions = policy(observation, cost_budget=torch.from_numpy(limit - spent), steps_left=left).actions
        reward, costs = step((actions.numpy()[:, 0] + 1) / 2, rng.random(episodes))
        spent, earned, lengths = spent + alive * cost * costs, earned + alive * reward, lengths + alive
        alive &= rng.random(episodes) >= end_probability(length, ends)
    assert (spent <= limit * (1 + 1e-6)).mean() >= 0.9
    assert spent.mean() > 0.2 * limit
    assert earned.mean() >= 0.6 * 0.63 * lengths.mean()
