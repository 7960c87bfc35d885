"""A small, real policy for BallCircle in a run's folder, with an evaluation whose figures can be followed."""

import json
from pathlib import Path

import numpy as np
import torch

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.assessment import Assessment, Estimate, LimitAssessment
from spi_diffusers.evaluation.certificate import Certificate, LimitCertificate, weights_sha256
from spi_diffusers.evaluation.entries import EvaluationEntry, TrainInfo
from spi_diffusers.evaluation.plots import plot_limits
from spi_diffusers.evaluation.results import write_results
from spi_diffusers.models import EvaluationCritic, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.saving import seal_folder

BALL = get_task("ballcircle")
DATASET = {"id": "embedded:OfflineBallCircle-v0", "sha256": "ab" * 32}
INFO = {
    "algorithm": "spi",
    "train_seed": 0,
    "updates": 1000,
    "train_seconds": 120.0,
    "dataset": DATASET,
    "versions": {"torch": "2.13.0"},
}
COMPONENTS = ("evaluation_critic", "noise_model", "normalizer", "reward_critic", "safety_critic")


def make_policy(seed: int = 0, task: str | None = BALL.name) -> SPIPolicyPipeline:
    torch.manual_seed(seed)
    known = get_task(task) if task else BALL
    size = known.observation_dim
    shared = {"observation_dim": size, "action_dim": known.action_dim, "hidden_dims": [16, 16]}
    normalizer = ObservationNormalizer(observation_dim=size)
    normalizer.set_statistics(torch.zeros(size), torch.ones(size))
    evaluation_critic = EvaluationCritic(
        observation_dim=size,
        action_dim=known.action_dim,
        max_episode_steps=known.max_episode_steps,
        reward_range=[0.0, 5.0],
        cost_high=1.0,
        hidden_dims=[16],
    )
    return SPIPolicyPipeline(
        noise_model=MLPNoiseModel(**shared),
        reward_critic=TwinCritic(**shared),
        safety_critic=TwinCritic(**shared),
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        evaluation_critic=evaluation_critic,
        task=task,
        max_episode_steps=known.max_episode_steps,
        gamma=0.98,
    )


def make_entry(returns, cost_returns, limit=10.0, extraction="safe", feedback=True, risk=None, **changes):
    info = {name: INFO[name] for name in ("algorithm", "train_seed", "updates", "train_seconds", "dataset")}
    return EvaluationEntry.from_episodes(
        BALL,
        np.asarray(returns, dtype=float),
        np.asarray(cost_returns, dtype=float),
        cost_limit=limit,
        extraction=extraction,
        feedback=feedback,
        eval_seeds=(1000,),
        steps_per_second=100.0,
        train_info=TrainInfo(**(info | changes)),
        versions={"torch": "2.13.0"},
        risk=risk,
    )


#: Limit 10 is kept by all episodes, 20 on average only, 40 is not; reward extraction keeps none.
ENTRIES = (
    make_entry([600, 640], [4, 8], 10),
    make_entry([650, 650], [14, 22], 20),
    make_entry([700, 740], [40, 50], 40),
    make_entry([760, 780], [60, 64], 10, "reward", False),
)


def make_run(folder: Path, entries=ENTRIES, seed: int = 0, **settings) -> Path:
    """A run's folder: `policy/`, `evaluation/` (unless without entries) and what is never published."""
    policy = folder / "policy"
    make_policy(seed).save_pretrained(policy)
    config = make_train_config({"task": BALL.name, "output_dir": str(folder), **settings})
    write_json(policy / "train_config.json", config.to_dict())
    write_json(policy / "train_info.json", INFO)
    write_json(folder / "train_config.json", config.to_dict())
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"pickle")
    (policy / "noise_model" / "old.bin").write_bytes(b"pickle")
    if entries:
        write_results(folder / "evaluation" / "results.json", entries)
        plot_limits(entries, folder / "evaluation" / "limits.png")
        (folder / "evaluation" / "replay.mp4").write_bytes(b"a video")
    return folder


def make_assessment(run: Path, **changes) -> Assessment:
    """What `spi assess` would have expected of the run's policy, written where it writes it."""
    expected = Estimate(600.0, 550.5, 640.0), Estimate(7.5, 5.0, 9.25)
    values = {
        "policy": {name: INFO[name] for name in ("algorithm", "train_seed", "updates", "train_seconds")},
        "dataset": DATASET,
        "held_out": True,
        "episodes": 40,
        "transitions": 8000,
        "risk": 0.05,
        "limits": [LimitAssessment(10.0, *expected, 0.9, 0.07), LimitAssessment(20.0, *expected, 1.0, None)],
        "smallest_limit": 12.5,
        "warnings": ["the data is small."],
    }
    found = Assessment(**values | changes)
    found.save(run / "policy" / "assessment.json")
    return found


def make_certificate(run: Path, **changes) -> Certificate:
    """What `spi certify` would have shown of the run's policy, written where it writes it."""
    index = json.loads((run / "policy" / "model_index.json").read_text())
    values = {
        "weights_sha256": weights_sha256(index),
        "cost_margin": 1.0,
        "algorithm": "spi",
        "train_seed": 0,
        "task": index["task"],
        "source": "simulator",
        "source_sha256": None,
        "seed": 0,
        "confidence": 0.95,
        "risk": 0.05,
        "highest_cost": 200.0,
        "limits": [
            LimitCertificate(10.0, 100, 1, 0.0466, 6.0, 13.1, 8.0, 12.0, 600.0),
            LimitCertificate(20.0, 100, 0, 0.0295, 9.0, None, 11.0, 18.0, None),
        ],
        "versions": {"torch": "2.13.0"},
    }
    found = Certificate(**values | changes)
    found.save(run / "policy" / "certificate.json")
    return found


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=2))


def edit_json(path: Path, **changes) -> None:
    """Change a file of a policy folder as its owner would, who saves the policy again."""
    write_json(path, json.loads(path.read_text()) | changes)
    seal_folder(path.parent)
