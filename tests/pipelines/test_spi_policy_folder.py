"""A saved policy: the same actions after loading, and clear errors for whatever can be wrong with it."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from pipeline_factory import full_pipeline, make_normalizer, make_pipeline, seeded
from safetensors.torch import load_file, save_file

from spi_diffusers.models import GaussianActor, TwinCritic
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
from spi_diffusers.pipelines.saving import seal_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMPONENTS = ("noise_model", "reward_critic", "safety_critic", "normalizer", "evaluation_critic", "student")
#: What a clear error is: one of these types, naming the component (which is its folder).
CLEAR = (ValueError, OSError)


def load(folder):
    return SPIPolicyPipeline.from_pretrained(str(folder))


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- round trip


def test_a_loaded_policy_gives_identical_actions(saved):
    original, loaded = full_pipeline(), load(saved)
    observation = torch.randn(4, 3)
    for options in ({}, {"cost_limit": 10}, {"cost_budget": 5, "steps_left": 20}):
        expected = original(observation, generator=seeded(), **options)
        actual = loaded(observation, generator=seeded(), **options)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name


def test_settings_survive(saved):
    config = load(saved).config
    assert (config.task, config.max_episode_steps, config.gamma) == ("OfflineBallCircle-v0", 100, 0.9)
    assert config.format_version == 2


def test_a_folder_that_names_no_margin_has_the_usual_one(tmp_path):
    make_pipeline(cost_margin=2.5).save_pretrained(tmp_path)
    assert load(tmp_path).config.cost_margin == 2.5
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["cost_margin"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    seal_folder(tmp_path)
    assert load(tmp_path).config.cost_margin == 1.0


def test_a_policy_without_evaluation_critic(tmp_path):
    made = make_pipeline(evaluation_critic=None)
    made.save_pretrained(str(tmp_path))
    loaded = load(tmp_path)
    assert loaded.evaluation_critic is None
    assert loaded.extractions == ("reward",)
    observation = torch.randn(2, 3)
    expected = made(observation, generator=seeded()).actions
    assert torch.equal(loaded(observation, generator=seeded()).actions, expected)
    with pytest.raises(ValueError, match=r"no evaluation critic, so it cannot keep a limit"):
        loaded(observation, cost_limit=10)


def test_saving_what_was_loaded_changes_no_file(saved, tmp_path):
    load(saved).save_pretrained(str(tmp_path))
    for path in sorted(saved.rglob("*")):
        if path.suffix == ".safetensors":
            assert (tmp_path / path.relative_to(saved)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("number", [np.int64, np.int32, torch.tensor, np.array], ids=lambda one: one.__name__)
def test_numbers_of_other_libraries_are_kept_as_plain_ones(tmp_path, number):
    sizes = {"observation_dim": number(3), "action_dim": number(2), "hidden_dims": [number(8)]}
    settings = {"max_episode_steps": number(200), "task": "OfflineBallCircle-v0"}
    pipe = make_pipeline(reward_critic=TwinCritic(**sizes), gamma=np.float32(0.5), **settings)
    actor = GaussianActor(**sizes | {"hidden_dims": (number(8),)})
    limits = {"cost_limit": number(5), "action_low": np.float32(-2), "action_high": number(2)}
    baseline = BaselinePolicyPipeline(actor, make_normalizer(), algorithm="cpq", **settings, **limits)
    pipe.training_record = {"config": {}, "info": {}}
    pipe.register_to_config(gamma=np.float64(0.25))
    pipe.training_record = {"config": {}, "info": {}}
    for one in (pipe, baseline):
        assert type(one.config.max_episode_steps) is int
        one.save_pretrained(tmp_path)
        loaded = type(one).from_pretrained(tmp_path)
        for name in ("task", "max_episode_steps", "cost_limit", "action_low", "action_high"):
            assert loaded.config.get(name) == one.config.get(name), name
        assert loaded.is_as_trained == one.is_as_trained == (one is pipe)
    assert pipe.config.gamma == 0.25


def test_a_swapped_scheduler_is_saved(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(str(tmp_path))
    assert type(load(tmp_path).scheduler) is DDIMScheduler


def test_a_folder_holds_safetensors_and_code_only(saved):
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{name}/{file}" for name in COMPONENTS for file in ("config.json", WEIGHTS)),
        *("pipeline.py", "noise_model/noise_model.py", "normalizer/normalizer.py"),
        *("reward_critic/critics.py", "safety_critic/critics.py", "evaluation_critic/evaluation_critic.py"),
        "student/student.py",
    }


def test_loading_in_another_process_needs_one_import_only(saved):
    import subprocess
    import sys

    script = (
        "import sys; from spi_diffusers.pipelines import SPIPolicyPipeline as P; "
        "print(P.from_pretrained(sys.argv[1])([0.0, 0.0, 0.0], cost_limit=10).actions.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "(2,)", done.stderr


# ---- weight files


def test_what_was_assessed_of_a_policy_goes_when_another_is_saved_over_it(tmp_path):
    for seed in (0, 1):
        make_pipeline(seed).save_pretrained(tmp_path / "policy")
        assert not (tmp_path / "policy" / "assessment.json").exists()
        (tmp_path / "policy" / "assessment.json").write_text("{}")
    SPIPolicyPipeline.from_pretrained(tmp_path / "policy")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_weight_file_is_named(folder, component):
    (folder / component / WEIGHTS).unlink()
    with pytest.raises(CLEAR, match=f"{component}.*{WEIGHTS}"):
        load(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_component_folder_is_named(folder, component):
    shutil.rmtree(folder / component)
    with pytest.raises(CLEAR, match=component):
        load(folder)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_weight_file_is_named(folder, component, keep):
    path = folder / component / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CLEAR, match=f"{component}.*{WEIGHTS}"):
        load(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_renamed_weight_file_is_named(folder, component):
    (folder / component / WEIGHTS).rename(folder / component / "model.safetensors")
    with pytest.raises(CLEAR, match=rf"{component}.*{WEIGHTS} is missing.*model\.safetensors"):
        load(folder)


class Bomb:
    """Unpickling this would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", WEIGHTS])
def test_a_pickle_is_never_loaded(folder, tmp_path, name):
    trace = tmp_path / "executed"
    (folder / "noise_model" / WEIGHTS).unlink()
    (folder / "noise_model" / name).write_bytes(pickle.dumps(Bomb(str(trace))))
    with pytest.raises(CLEAR, match="noise_model"):
        load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("choice", [False, None])
def test_asking_for_pickles_is_refused(folder, choice):
    with pytest.raises(ValueError, match="use_safetensors"):
        SPIPolicyPipeline.from_pretrained(str(folder), use_safetensors=choice)


def test_a_lost_weight_is_named(folder):
    path = folder / "reward_critic" / WEIGHTS
    weights = load_file(path)
    lost = sorted(weights)[0]
    weights.pop(lost)
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"reward_critic.*'{lost}'"):
        load(folder)


def test_a_foreign_weight_is_named(folder):
    path = folder / "reward_critic" / WEIGHTS
    save_file(load_file(path) | {"foreign": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"reward_critic.*'foreign'"):
        load(folder)


def test_weights_of_another_component_are_refused(folder):
    shutil.copy(folder / "reward_critic" / WEIGHTS, folder / "safety_critic" / WEIGHTS)
    with pytest.raises(ValueError, match="safety_critic"):
        load(folder)


# ---- configs


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("noise_model", {"hidden_dims": [16, 32]}),
        ("noise_model", {"use_safety_weight": False}),
        ("reward_critic", {"hidden_dims": [16]}),
        ("reward_critic", {"observation_dim": 8}),
        ("safety_critic", {"action_dim": 3}),
        ("normalizer", {"observation_dim": 4}),
        ("evaluation_critic", {"hidden_dims": [8]}),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_named(folder, component, changes):
    edit_json(folder / component / "config.json", **changes)
    with pytest.raises(ValueError, match=f"{component}.*does not fit its config"):
        load(folder)


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("noise_model", {"activation": "tahn"}),
        ("noise_model", {"time_embed_dim": 7}),
        ("noise_model", {"action_low": [1.0, 1.0, 1.0]}),
        ("reward_critic", {"hidden_dims": [0]}),
        ("normalizer", {"observation_dim": "three"}),
    ],
)
def test_a_config_with_impossible_values_is_named(folder, component, changes):
    edit_json(folder / component / "config.json", **changes)
    with pytest.raises(ValueError, match=f"{component}.*config.json"):
        load(folder)


@pytest.mark.parametrize("component", [*COMPONENTS, "scheduler"])
@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_broken_config_is_named(folder, component, content):
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = folder / component / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(CLEAR, match=f"{component}.*{name}"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_broken_index_is_named(folder, content):
    if content is None:
        (folder / "model_index.json").unlink()
    else:
        (folder / "model_index.json").write_text(content)
    with pytest.raises(CLEAR, match=r"model_index\.json"):
        load(folder)


def test_an_index_without_a_component_is_refused(folder):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index.pop("safety_critic")
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="safety_critic"):
        load(folder)


def test_an_index_with_an_unknown_class_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    edit_json(folder / "model_index.json", safety_critic=[index["safety_critic"][0], "TripleCritic"])
    with pytest.raises(ValueError, match="TripleCritic"):
        load(folder)


def test_components_of_different_policies_are_refused(folder, tmp_path):
    make_pipeline(conditioned=False).save_pretrained(str(tmp_path / "other"))
    shutil.rmtree(folder / "reward_critic")
    shutil.copytree(tmp_path / "other" / "reward_critic", folder / "reward_critic")
    seal_folder(folder)
    with pytest.raises(ValueError, match="reward_critic's use_safety_weight is False"):
        load(folder)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_are_nan_are_named(folder, name):
    path = folder / "normalizer" / WEIGHTS
    weights = load_file(path)
    weights[name][1] = torch.nan
    save_file(weights, path)
    seal_folder(folder)
    with pytest.raises(ValueError, match=f"'{name}' of the observation normalizer"):
        load(folder)


def test_network_weights_that_are_nan_are_refused(folder):
    path = folder / "noise_model" / WEIGHTS
    weights = load_file(path)
    weights["net.0.bias"][0] = torch.nan
    save_file(weights, path)
    seal_folder(folder)
    with pytest.raises(ValueError, match=r"noise_model's weights are not finite: net\.0\.bias"):
        load(folder)


def test_a_newer_format_is_refused(folder):
    edit_json(folder / "model_index.json", format_version=3)
    with pytest.raises(ValueError, match=r"format version 3.*upgrade"):
        load(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CLEAR, match="nowhere"):
        load(tmp_path / "nowhere")


def test_errors_leave_the_folder_as_it_was(folder):
    (folder / "normalizer" / WEIGHTS).unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CLEAR):
        load(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "betas", [[0.5], [0.5] * 9, "0.5", [float("nan")] * 5, [0.1, 0.2, 0.3, 0.4, 1.0], [None] * 5]
)
def test_a_noise_schedule_that_cannot_be_is_named(folder, betas):
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=5, trained_betas=betas)
    with pytest.raises(ValueError, match=r"scheduler_config\.json: trained_betas must"):
        load(folder)


def test_weights_in_several_files_are_refused(folder):
    (folder / "noise_model" / f"{WEIGHTS}.index.json").write_text("{}")
    with pytest.raises(ValueError, match="weights in several files are not loaded"):
        load(folder)


def test_a_policy_that_is_loaded_in_inference_mode_acts(folder):
    with torch.inference_mode():
        pipe = load(folder)
    observation = torch.zeros(pipe.noise_model.config.observation_dim)
    expected = load(folder)(observation, generator=torch.Generator().manual_seed(0)).actions
    assert torch.equal(pipe(observation, generator=torch.Generator().manual_seed(0)).actions, expected)


@pytest.mark.parametrize("entry", [[], ["library"], ["a", "b", "c"], [1, 2], "library", None])
def test_a_component_that_names_no_library_and_class_is_refused(folder, entry):
    edit_json(folder / "model_index.json", noise_model=entry)
    with pytest.raises(ValueError, match=r"model_index\.json: 'noise_model' must name a library and a class"):
        load(folder)
