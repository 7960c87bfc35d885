import importlib.metadata
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch
from ball_circle_policies import BallCircler
from evaluation_factory import BALL_CIRCLE, make_train_info
from gymnasium.envs.registration import EnvSpec, registry
from policy_factory import edit_json, make_run

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.envs.make import _SIMULATORS
from spi_diffusers.evaluation.evaluate import EvaluationSpec, evaluate, evaluate_policy
from spi_diffusers.evaluation.folder import evaluate_to_folder
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.rollouts import PipelinePolicy, rollout
from spi_diffusers.evaluation.video import play_episode
from spi_diffusers.files import PolicyError
from spi_diffusers.models import EvaluationCritic, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline


def _evaluate(policy=None, extraction="safe", on_rollout=None, **changes):
    spec = EvaluationSpec(**{"cost_limits": [10, 20], "episodes": 2, "seeds": [0, 1], **changes})
    info = make_train_info(train_seed=3)
    return evaluate_policy(
        policy or BallCircler(), BALL_CIRCLE, spec, extraction, info, progress=False, on_rollout=on_rollout
    )


def test_one_entry_per_limit_over_all_evaluation_seeds():
    rollouts = {}
    entries = _evaluate(
        on_rollout=lambda _, played: rollouts.update({(played.cost_limit, played.seed): played})
    )

    assert [entry.cost_limit for entry in entries] == [10, 20]
    assert set(rollouts) == {(10, 0), (10, 1), (20, 0), (20, 1)}
    for entry in entries:
        played = [rollouts[entry.cost_limit, seed] for seed in (0, 1)]
        costs = np.concatenate([p.cost_returns for p in played])
        assert (entry.episodes, entry.eval_seeds, entry.feedback) == (4, (0, 1), True)
        assert entry.cost_mean == costs.mean()
        assert entry.within_limit == (costs <= entry.cost_limit).mean()
        assert entry.reward_mean == pytest.approx(np.concatenate([p.returns for p in played]).mean())
        assert entry.steps_per_second == pytest.approx(800 / sum(p.seconds for p in played))
        assert (entry.algorithm, entry.train_seed) == ("spi", 3)
    assert entries[0].cost_mean < entries[1].cost_mean, "a higher limit is used"


def test_a_policy_that_knows_no_limit_is_played_once():
    rollouts = []
    entries = _evaluate(extraction="policy", on_rollout=lambda _, played: rollouts.append(played))

    assert [(played.cost_limit, played.seed) for played in rollouts] == [(None, 0), (None, 1)]
    assert [entry.feedback for entry in entries] == [False, False]
    assert entries[0].cost_mean == entries[1].cost_mean
    assert entries[0].normalized_cost == pytest.approx(2 * entries[1].normalized_cost)


def test_default_limits_are_the_tasks():
    entries = _evaluate(cost_limits=None, extraction="policy", seeds=[0], episodes=1)
    assert tuple(entry.cost_limit for entry in entries) == BALL_CIRCLE.cost_limits


def test_versions_name_what_the_numbers_depend_on():
    (entry,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1)
    for package in ("torch", "gymnasium", "bullet-safety-gym", "pybullet"):
        assert entry.versions[package] == importlib.metadata.version(package)
    assert {"python", "spi-diffusers"} <= set(entry.versions)


def make_free_ride():
    """Stands in for the real dsrl's BallCircle, which does not install here: 0.5 a step, cost 1."""
    from bullet_safety_gym.envs.builder import EnvironmentBuilder

    class FreeRide(EnvironmentBuilder):
        def step(self, action):
            observation, _, terminated, truncated, _ = super().step(action)
            return observation, 0.5, terminated, truncated, {"cost": 1.0}

    return FreeRide(**gymnasium.spec(BALL_CIRCLE.env_id).kwargs)


def test_the_simulator_can_be_chosen(monkeypatch):
    monkeypatch.setitem(sys.modules, "dsrl", ModuleType("dsrl"))
    monkeypatch.setitem(registry, BALL_CIRCLE.name, EnvSpec(id=BALL_CIRCLE.name, entry_point=make_free_ride))
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1.2" if name == "dsrl" else version(name)
    )
    (theirs,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1, simulator="dsrl")
    assert (theirs.reward_mean, theirs.cost_mean) == (100, 200)
    assert theirs.versions["dsrl"] == "0.1.2"
    (own,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1)
    assert own.reward_mean > 200
    assert "dsrl" not in own.versions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_limits": []}, "cost_limits must be null or a list of at least one item"),
        ({"cost_limits": [10, 10.0]}, "cost_limits holds the same value twice"),
        ({"cost_limits": [10, -1]}, "cost_limits must be .*a list .*each a number of at least 0"),
        ({"cost_limits": 10}, "cost_limits must be .*a list .*, got 10"),
        ({"seeds": []}, "seeds must be a list of at least one item"),
        ({"seeds": [0, 0]}, "seeds holds the same value twice"),
        ({"seeds": [0, -1]}, "seeds must be a list .*each a whole number"),
        ({"episodes": 0}, "episodes must be"),
        ({"extractions": []}, "extractions must be null or a list of at least one item"),
        ({"extractions": "safe"}, "extractions must be .*a list .*, got 'safe'"),
        ({"extractions": ["best"]}, "extractions must be .* one of safe, reward"),
    ],
)
def test_bad_arguments_are_found_before_the_first_episode(changes, message):
    policy = BallCircler()
    with pytest.raises(ValueError, match=message):
        _evaluate(policy, **changes)
    assert policy.calls == []


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
        safety_critic=TwinCritic(8, 2, hidden_dims=(16, 16)),
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        evaluation_critic=EvaluationCritic(8, 2, 200, [0.0, 1.0], 1.0, hidden_dims=(16,)),
        task="OfflineBallCircle-v0",
        max_episode_steps=200,
    )


class Spy:
    """Passes calls on to a pipeline and keeps their arguments."""

    def __init__(self, pipeline):
        self.pipeline, self.calls = pipeline, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, observation, **arguments):
        self.calls.append(arguments)
        return self.pipeline(observation, **arguments)


def _play(policy, **changes):
    arguments = {"episodes": 2, "seed": 0, "cost_limit": 10, "progress": False, **changes}
    return rollout(policy, "ballcircle", **arguments)


def test_rollouts_are_exactly_reproducible_and_leave_the_global_generator_alone(pipeline, step_costs):
    policy = PipelinePolicy(pipeline, "reward", num_candidates=6)
    first = _play(policy)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = _play(PipelinePolicy(pipeline, "reward", num_candidates=6))

    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.returns, again.returns)
    np.testing.assert_array_equal(step_costs[:200], step_costs[200:400])
    np.testing.assert_array_equal(_play(policy).returns, first.returns)
    assert not np.array_equal(_play(policy, seed=1).returns, first.returns)


def test_what_the_pipeline_is_told(pipeline, step_costs):
    spy = Spy(pipeline)
    _play(PipelinePolicy(spy))
    assert len(spy.calls) == 200, "one call per step for all episodes"
    assert spy.calls[0]["cost_budget"].tolist() == [10.0, 10.0]
    assert spy.calls[199]["steps_left"].tolist() == [1, 1]
    np.testing.assert_array_equal(spy.calls[199]["cost_budget"], 10 - np.sum(step_costs[:199], axis=0))
    assert all("cost_limit" not in call and call["extraction"] == "safe" for call in spy.calls)
    assert {call["risk"] for call in spy.calls} == {0.05}

    spy.calls.clear()
    _play(PipelinePolicy(spy, risk=0.3), feedback=False, episodes=1)
    assert {call["risk"] for call in spy.calls} == {0.3}
    assert all(call["cost_limit"] == 10.0 and "steps_left" not in call for call in spy.calls)

    spy.calls.clear()
    _play(PipelinePolicy(spy, extraction="reward", num_candidates=3), episodes=1)
    assert all(not {"cost_limit", "cost_budget", "steps_left", "risk"} & set(call) for call in spy.calls)
    assert {call["num_candidates"] for call in spy.calls} == {3}


def test_safe_extraction_needs_a_limit(pipeline):
    with pytest.raises(ValueError, match="needs a cost limit"):
        _play(PipelinePolicy(pipeline), cost_limit=None)


def test_evaluate_gives_entries_of_both_extractions_as_they_were_asked_for(pipeline):
    entries = evaluate(
        pipeline,
        cost_limits=iter([20, 10]),
        episodes=1,
        seeds=iter([0, 1]),
        num_candidates=6,
        progress=False,
    )

    assert [(e.extraction, e.cost_limit, e.feedback, e.episodes) for e in entries] == [
        ("safe", 20, True, 2),
        ("safe", 10, True, 2),
        ("reward", 20, False, 2),
        ("reward", 10, False, 2),
    ]
    assert [entry.risk for entry in entries] == [0.05, 0.05, None, None]
    assert {entry.task for entry in entries} == {"OfflineBallCircle-v0"}


@pytest.mark.parametrize("policy", [None, 3, [], object(), {}])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(PolicyError, match=r"is no policy with a training record: give a folder"):
        evaluate(policy)


def test_simulators_are_those_of_make_env():
    known = {name for makers in _SIMULATORS.values() for name in makers}
    for name in ("auto", *known):
        assert EvaluationSpec(simulator=name).simulator == name
    with pytest.raises(ConfigError, match=r"simulator must be one of auto, .*, got 'bulet'; did you mean"):
        EvaluationSpec(simulator="bulet")


def test_a_pipeline_of_another_task_is_refused(pipeline):
    with pytest.raises(
        ValueError, match="trained for OfflineBallCircle-v0, it cannot be evaluated on OfflineCarCircle-v0"
    ):
        evaluate(pipeline, "carcircle")


@pytest.fixture
def run(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    return make_run(tmp_path / "run", entries=())


def play_to(output, run, limit, **options):
    spec = EvaluationSpec(cost_limits=[limit], episodes=1, extractions=["safe"])
    results, _ = evaluate_to_folder(
        run, spec, output=output, plots=False, video=False, progress=False, **options
    )
    return results


def test_results_of_another_training_of_the_same_name_are_replaced(run, tmp_path, caplog):
    play_to(tmp_path / "out", run, 10.0)
    play_to(tmp_path / "out", run, 20.0)
    assert [one.cost_limit for one in read_results(tmp_path / "out" / "results.json")] == [10.0, 20.0]
    # Other weights of the same task, algorithm and seed.
    edit_json(run / "policy" / "train_info.json", train_seconds=99.0)
    play_to(tmp_path / "out", run, 40.0)
    assert [one.cost_limit for one in read_results(tmp_path / "out" / "results.json")] == [40.0]
    assert "2 results of another training of the same name, or with another cost_margin, are" in caplog.text
    edit_json(run / "policy" / "model_index.json", cost_margin=2.0)
    (found,) = play_to(tmp_path / "out", run, 20.0)
    assert read_results(tmp_path / "out" / "results.json") == [found]
    assert found.cost_margin == 2.0


def test_data_that_the_policy_was_not_trained_on_is_not_compared_with(run, tmp_path, caplog):
    # The small policy's record has a made-up checksum.
    assert play_to(tmp_path / "out", run, 10.0).behavior == []
    assert "embedded:OfflineBallCircle-v0 is not what the policy was trained on" in caplog.text


def test_the_datas_own_figures_are_of_the_limits_that_were_played(run, tmp_path):
    for limit in (10.0, 20.0):
        results = play_to(tmp_path / "out", run, limit, dataset="embedded")
        assert [row.cost_limit for row in results.behavior] == [limit]


def test_a_policy_in_memory_says_what_it_was_trained_as(pipeline, caplog):
    short = {"cost_limits": [10], "extractions": ["safe"], "episodes": 1, "num_inference_steps": 1}
    (unknown,) = evaluate(pipeline, progress=False, **short)
    assert (unknown.algorithm, unknown.updates, unknown.dataset["id"]) == ("unknown", 0, "unknown")
    assert "no record of its training" in caplog.text

    policy = _tiny_pipeline()
    policy.training_record = {"config": {}, "info": make_train_info(updates=7).to_dict()}
    (known,) = evaluate(policy, progress=False, **short)
    assert (known.algorithm, known.updates) == ("spi", 7)
    (named,) = evaluate(policy, progress=False, algorithm="mine", **short)
    assert (named.algorithm, named.updates) == ("mine", 7)
    with torch.no_grad():
        next(policy.noise_model.parameters()).add_(0.1)
    (changed,) = evaluate(policy, progress=False, **short)
    assert changed.algorithm == "unknown", "the record is of other weights"


def test_a_policy_by_its_folder(run):
    import spi_diffusers

    results = spi_diffusers.evaluate(run, cost_limits=[10], extractions=["safe"], episodes=1, progress=False)
    assert [(entry.algorithm, entry.updates) for entry in results] == [("spi", 1000)]
    with pytest.raises(FileNotFoundError, match=r"no such folder.*did you mean .*run"):
        spi_diffusers.evaluate(run.with_name("rum"))


def test_choices_without_effect_are_refused(pipeline):
    with pytest.raises(ValueError, match="no effect: extraction 'reward' ignores the cost"):
        evaluate(pipeline, extractions=["reward"], feedback=False)
    with pytest.raises(ValueError, match="no extraction 'policy', only safe and reward"):
        evaluate(pipeline, extractions=["policy"])
    with pytest.raises(ValueError, match=r"risk=0.2 has no effect: extraction 'reward' ignores the cost"):
        evaluate(pipeline, extractions=["reward"], risk=0.2)
    with pytest.raises(
        ValueError, match=r"num_candidates=6 has no effect: extraction 'safe' has one candidate"
    ):
        evaluate(pipeline, extractions=["safe"], num_candidates=6)


@pytest.mark.parametrize(
    ("risk", "message"),
    [
        (0, "risk must lie above 0: no estimate from data excludes that a limit is exceeded"),
        (1, r"risk must be a finite number in \[0, 1\), got 1"),
        (float("nan"), r"risk must be a finite number in \[0, 1\), got nan"),
        ("5%", r"risk must be a finite number in \[0, 1\), got '5%'"),
    ],
)
def test_a_risk_out_of_range_is_refused_as_by_the_pipeline_before_a_policy_is_loaded(pipeline, risk, message):
    with pytest.raises(ValueError, match=message):
        evaluate("no/policy", risk=risk)
    with pytest.raises(ValueError, match=message):
        play_episode("no/policy", risk=risk)
    with pytest.raises(ValueError, match=message):
        pipeline([0.0] * 8, cost_limit=1.0, risk=risk)


def test_each_risk_has_its_own_entry(run, tmp_path):
    for risk in (0.05, 0.2, 0.2):
        spec = EvaluationSpec(cost_limits=[10.0], episodes=1, extractions=["safe"], risk=risk)
        evaluate_to_folder(run, spec, output=tmp_path, plots=True, video=False, progress=False)
    assert [one.risk for one in read_results(tmp_path / "results.json")] == [0.05, 0.2]


def test_a_pipeline_of_the_shipped_class_is_refused_with_what_to_do(pipeline):
    from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline

    shipped = SPIPolicyPipeline(**pipeline.components, task=pipeline.config.task, max_episode_steps=200)
    with pytest.raises(PolicyError, match=r"what SPIPolicyPipeline\.from_pretrained loads"):
        evaluate(shipped, "ballcircle", episodes=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feedback": 0}, "feedback must be true or false, got 0"),
        ({"num_candidates": 1.5}, "num_candidates must be a whole number of at least 1 or null, got 1.5"),
        ({"num_inference_steps": True}, "num_inference_steps must be a whole number .*, got True"),
    ],
)
def test_wrong_settings_show_before_anything_is_played(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSpec(**settings)
