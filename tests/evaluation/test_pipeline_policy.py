"""Evaluation with a real (untrained) pipeline."""

import numpy as np
import pytest
import torch
from evaluation_factory import make_train_info

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithms import SPIConfig
from spi_diffusers.evaluation.evaluate import evaluate
from spi_diffusers.evaluation.rollouts import PipelinePolicy, rollout
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline


@pytest.fixture(scope="module")
def pipeline():
    return _tiny_pipeline()


def _tiny_pipeline():
    torch.manual_seed(0)
    normalizer = ObservationNormalizer(8)
    normalizer.set_statistics(torch.zeros(8), torch.ones(8))
    return SPIPolicyPipeline(
        noise_model=MLPNoiseModel(8, 2, hidden_dims=(16, 16)),
        reward_critic=TwinCritic(8, 2, hidden_dims=(16, 16)),
        safety_critic=TwinCritic(8, 2, hidden_dims=(16, 16), num_heads=2),
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        task="OfflineBallCircle-v0",
        max_episode_steps=200,
    )


class Spy:
    """Passes calls on to a pipeline and keeps their arguments."""

    def __init__(self, pipeline):
        self.pipeline, self.calls = pipeline, []

    def __call__(self, observation, **arguments):
        self.calls.append(arguments)
        return self.pipeline(observation, **arguments)


def _play(policy, **changes):
    arguments = {"episodes": 2, "seed": 0, "cost_limit": 10, "progress": False, **changes}
    return rollout(policy, "ballcircle", **arguments)


def test_rollouts_are_exactly_reproducible_and_leave_the_global_generator_alone(pipeline):
    policy = PipelinePolicy(pipeline, num_candidates=6)
    first = _play(policy)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = _play(PipelinePolicy(pipeline, num_candidates=6))

    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.returns, again.returns)
    np.testing.assert_array_equal(first.running_cost, again.running_cost)
    np.testing.assert_array_equal(_play(policy).returns, first.returns)
    assert not np.array_equal(_play(policy, seed=1).returns, first.returns)


def test_what_the_pipeline_is_told(pipeline):
    spy = Spy(pipeline)
    played = _play(PipelinePolicy(spy, num_candidates=6))
    assert len(spy.calls) == 200, "one call per step for all episodes"
    assert spy.calls[0]["cost_budget"].tolist() == [10.0, 10.0]
    assert spy.calls[199]["steps_left"].tolist() == [1, 1]
    np.testing.assert_array_equal(spy.calls[199]["cost_budget"], 10 - played.running_cost[198])
    assert all(call["cost_limit"] == 10 and call["extraction"] == "safe" for call in spy.calls)

    spy.calls.clear()
    _play(PipelinePolicy(spy, num_candidates=6), feedback=False, episodes=1)
    assert all(call["cost_limit"].tolist() == [10.0] and "steps_left" not in call for call in spy.calls)

    spy.calls.clear()
    _play(PipelinePolicy(spy, extraction="reward", num_candidates=3), episodes=1)
    assert all(not {"cost_limit", "cost_budget", "steps_left"} & set(call) for call in spy.calls)
    assert {call["num_candidates"] for call in spy.calls} == {3}


def test_safe_extraction_needs_a_limit(pipeline):
    with pytest.raises(ValueError, match="needs a cost limit"):
        _play(PipelinePolicy(pipeline), cost_limit=None)
    with pytest.raises(ValueError, match="extraction must be 'safe' or 'reward'"):
        PipelinePolicy(pipeline, extraction="best")


def test_evaluate_gives_entries_of_both_extractions_sorted(pipeline):
    entries = evaluate(
        pipeline,
        train_info=make_train_info(),
        cost_limits=iter([20, 10]),
        episodes=1,
        seeds=iter([0, 1]),
        num_candidates=6,
        progress=False,
    )

    assert [(e.extraction, e.cost_limit, e.feedback, e.episodes) for e in entries] == [
        ("reward", 10, False, 2),
        ("reward", 20, False, 2),
        ("safe", 10, True, 2),
        ("safe", 20, True, 2),
    ]
    assert {entry.task for entry in entries} == {"OfflineBallCircle-v0"}


def test_a_pipeline_of_another_task_is_refused(pipeline):
    with pytest.raises(
        ValueError, match="trained for OfflineBallCircle-v0, it cannot be evaluated on OfflineCarCircle-v0"
    ):
        evaluate(pipeline, "carcircle", train_info=make_train_info())
    with pytest.raises(ValueError, match="extractions is empty"):
        evaluate(pipeline, train_info=make_train_info(), extractions=[])
