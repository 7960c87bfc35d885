"""What the configs of a policy folder may say: a stranger's field, type, range or class is named."""

import inspect
import json
import pickle
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from pipeline_factory import make_normalizer, make_pipeline, seeded

from spi_diffusers import models
from spi_diffusers.algorithms.losses import vp_betas
from spi_diffusers.models import (
    BatchConstrainedActor,
    DeterministicActor,
    DiffusionActor,
    GaussianActor,
)
from spi_diffusers.models.noise_model import SCHEDULERS
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
from spi_diffusers.pipelines.saving import seal_folder

INF, NAN = float("inf"), float("nan")
FILES = {
    "model_index.json": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    **{
        name: f"{name}/config.json"
        for name in (
            "noise_model",
            "reward_critic",
            "safety_critic",
            "normalizer",
            "evaluation_critic",
            "student",
        )
    },
}


def edit(folder, file, change):
    path = folder / FILES[file]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(folder, message):
    """By its fields, before its checksums."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        SPIPolicyPipeline.from_pretrained(folder)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)


# ---- fields


def test_every_field_is_needed(saved, tmp_path):
    """Without it diffusers would take a default, and the policy would act in another way."""
    for file, path in FILES.items():
        for key in json.loads((saved / path).read_text()):
            # It is 1 where nobody tuned it, of one cost no name is needed, and a student is an extra.
            if key.startswith("_") or key in ("cost_margin", "cost_names", "student"):
                continue
            folder = Path(shutil.copytree(saved, tmp_path / f"{file} {key}"))
            edit(folder, file, lambda content, key=key: content.pop(key))
            refused(folder, f"{path}: the field '{key}' is missing")


@pytest.mark.parametrize("file", sorted(set(FILES) - {"model_index.json"}))
def test_the_config_of_another_component_is_named(folder, file):
    other = "normalizer" if file != "normalizer" else "scheduler"
    shutil.copy(folder / FILES[other], folder / FILES[file])
    refused(folder, f"{FILES[file]} is of a '")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"max_episode_steps": "abc"}, "max_episode_steps must be a whole number"),
        ("model_index.json", {"max_episode_steps": INF}, "max_episode_steps must be a whole number"),
        ("model_index.json", {"max_episode_steps": 1e3}, "max_episode_steps must be a whole number"),
        ("model_index.json", {"gamma": NAN}, "gamma must be a finite number"),
        ("model_index.json", {"task": ["a", "b"]}, "task must be text"),
        ("model_index.json", {"task": 10**4000}, "task must be text or None"),
        ("noise_model", {"activation": []}, r"activation must be non-empty text, got \[\]"),
        ("noise_model", {"use_safety_weight": "no"}, "use_safety_weight must be true or false, got 'no'"),
        ("noise_model", {"use_safety_weight": 1}, "use_safety_weight must be true or false, got 1"),
        ("noise_model", {"hidden_dims": "16"}, "hidden_dims must be a list, each a whole number"),
        ("noise_model", {"hidden_dims": None}, "hidden_dims must be a list"),
        ("noise_model", {"action_dim": True}, "action_dim must be a whole number"),
        ("noise_model", {"action_dim": 10**400}, "action_dim must be a whole number"),
        ("noise_model", {"action_low": "a"}, "action_low must be a number .* or a list, each a number"),
        ("noise_model", {"action_low": -INF}, "action_low must be a finite number"),
        ("noise_model", {"action_high": 1e300}, r"action_high must be a number in \[-1e\+18, 1e\+18\]"),
        ("noise_model", {"activation": "x" * 5000}, "activation function xxx"),
        ("normalizer", {"clip": 10**30}, "clip must be a number in"),
        ("scheduler", {"variance_type": None}, "variance_type must be one of fixed_small"),
        ("scheduler", {"timestep_spacing": "leading", "steps_offset": 1}, "steps_offset=1 leads beyond"),
        ("model_index.json", {"max_episode_steps": 10**30}, "max_episode_steps must be a whole number"),
        ("reward_critic", {"action_dim": 1.0}, "action_dim must be a whole number of at least 1, got 1.0"),
        ("normalizer", {"clip": -1.0}, "clip must be positive"),
        ("normalizer", {"clip": None}, "clip must be a number .*, got None"),
        ("model_index.json", {"reward_unit": 0.0}, "reward_unit must be a finite number of at least 1e-18"),
        ("model_index.json", {"reward_unit": "1"}, "reward_unit must be a finite number"),
        ("model_index.json", {"cost_margin": 0.0}, "cost_margin must be a finite number of at least 1e-18"),
        ("normalizer", {"observation_dim": 1e300}, "observation_dim must be a whole number"),
        ("evaluation_critic", {"cost_mean": "1"}, "cost_mean must be a number in"),
        ("evaluation_critic", {"cost_mean": []}, "Several costs need a number and a name of its own"),
        ("evaluation_critic", {"cost_names": [""]}, "cost_names must be"),
        ("evaluation_critic", {"cost_mean": -1.0}, "Units must be positive"),
        ("evaluation_critic", {"reward_range": [1.0]}, "An evaluation critic needs a reward_range"),
        (
            "evaluation_critic",
            {"reward_range": [1.0, 2.0]},
            "An evaluation critic needs a reward_range",
        ),
        ("evaluation_critic", {"cost_high": NAN}, "cost_high must be a finite number"),
        ("evaluation_critic", {"cost_unit": 0.0}, "Units must be positive"),
        ("evaluation_critic", {"max_episode_steps": 0}, "max_episode_steps must be a whole number"),
        ("scheduler", {"variance_type": "learned"}, "variance_type must be one of fixed_small"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type must be epsilon"),
        ("scheduler", {"num_train_timesteps": 100_000}, "num_train_timesteps must be a whole number in"),
        ("scheduler", {"beta_start": -1.0}, r"beta_start must be a number in \(0, 1\)"),
        ("scheduler", {"clip_sample": "yes"}, "clip_sample must be true or false"),
        ("scheduler", {"clip_sample_range": 0.0}, r"clip_sample_range must be a number in \(0, 1e\+18\]"),
        ("scheduler", {"timestep_spacing": "dense"}, "timestep_spacing must be one of"),
        ("scheduler", {"steps_offset": -1}, "steps_offset must be a whole number of at least 0"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False"),
        ("scheduler", {"trained_betas": [0.5] * 4}, "trained_betas must be a list of num_train_timesteps=5"),
        ("scheduler", {"beta_schedule": "cubic", "trained_betas": None}, "beta_schedule must be one of"),
        ("scheduler", {"unheard": 1}, r"unknown field 'unheard'"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_named(folder, file, changes, message):
    edit(folder, file, lambda content: content.update(changes))
    refused(folder, f"{FILES[file]}: {message}")


def test_schedulers_of_another_version_of_diffusers_load(folder):
    edit(folder, "scheduler", lambda content: content.update(_diffusers_version="0.30.0"))
    edit(folder, "scheduler", lambda content: content.pop("thresholding"))
    seal_folder(folder)
    SPIPolicyPipeline.from_pretrained(folder)
    edit(folder, "scheduler", lambda content: content.pop("trained_betas"))
    refused(folder, "the field 'trained_betas' is missing")


# ---- classes


@pytest.mark.parametrize("entry", [["diffusers", "DiffusionPipeline"], ["diffusers", "PNDMScheduler"]])
@pytest.mark.parametrize("trust", [False, True])
def test_a_scheduler_is_one_of_those_that_denoise_actions(folder, tmp_path, entry, trust):
    """A pipeline in place of the scheduler would load what lies in its folder, pickles too."""

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    for name in ("diffusion_pytorch_model.bin", "scheduler.bin", "pytorch_model.bin"):
        (folder / "scheduler" / name).write_bytes(pickle.dumps(Bomb()))
    edit(folder, "model_index.json", lambda content: content.update(scheduler=entry))
    seal_folder(folder)
    with pytest.raises(ValueError, match=r"model_index\.json: the scheduler must be one of diffusers' DDPM"):
        SPIPolicyPipeline.from_pretrained(folder, trust_remote_code=trust)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("noise_model", ["diffusers", "UNet2DModel"]),
        ("noise_model", ["diffusers", "DDPMScheduler"]),
        ("normalizer", ["critics", "TwinCritic"]),
        ("reward_critic", ["torch.nn", "Linear"]),
        ("safety_critic", [None, None]),
    ],
)
def test_every_component_is_of_its_class(folder, name, entry):
    edit(folder, "model_index.json", lambda content: content.update({name: entry}))
    with pytest.raises(ValueError, match=rf"model_index\.json: '{name}' (is a|must name a library and a)"):
        SPIPolicyPipeline.from_pretrained(folder)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
def test_every_scheduler_that_denoises_actions_is_saved_and_loaded(tmp_path, scheduler):
    pipe = make_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    pipe.save_pretrained(tmp_path)
    loaded = SPIPolicyPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler).__name__ == scheduler
    again = DPMSolverMultistepScheduler.from_config(loaded.scheduler.config)  # keeps the other's fields
    loaded.scheduler = again
    loaded.save_pretrained(tmp_path)
    SPIPolicyPipeline.from_pretrained(tmp_path)


ACTORS = {
    "deterministic": lambda: DeterministicActor(3, 2, [4]),
    "gaussian": lambda: GaussianActor(3, 2, [4]),
    "batch constrained": lambda: BatchConstrainedActor(3, 2, [4], vae_hidden_dim=4),
    "diffusion": lambda: DiffusionActor(3, 2, vp_betas(5, 0.1, 10.0), [4]),
}


@pytest.mark.parametrize("actor", ACTORS)
def test_baselines_have_the_same_checks(tmp_path, actor):
    pipe = BaselinePolicyPipeline(ACTORS[actor](), make_normalizer(), algorithm="any", cost_limit=10.0)
    pipe.save_pretrained(tmp_path)
    expected = pipe(torch.zeros(2, 3), generator=seeded())
    assert torch.equal(
        BaselinePolicyPipeline.from_pretrained(tmp_path)(torch.zeros(2, 3), generator=seeded()), expected
    )
    path = tmp_path / "actor" / "config.json"
    content = json.loads(path.read_text())
    for key in (key for key in content if not key.startswith("_")):
        path.write_text(json.dumps({**content, key: {"odd": "x" * 1000}}))
        with pytest.raises(ValueError, match=rf"actor/config\.json: {key} must be") as caught:
            BaselinePolicyPipeline.from_pretrained(tmp_path)
        assert len(str(caught.value)) < 500
    path.write_text(json.dumps(content))
    index = tmp_path / "model_index.json"
    changed = json.loads(index.read_text()) | {"action_low": 2.0}
    index.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"model_index\.json: action_low must lie below action_high"):
        BaselinePolicyPipeline.from_pretrained(tmp_path)


def test_the_types_of_all_fields_are_known():
    from spi_diffusers.pipelines.component_configs import _TYPES

    for kind in (getattr(models, name) for name in models.__all__ if not name.endswith("Output")):
        for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
            assert parameter.annotation in _TYPES, (kind, parameter)


# ---- files


def test_a_pointer_in_place_of_a_file_says_what_to_run(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
    for name in ("noise_model/diffusion_pytorch_model.safetensors", "normalizer/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(pointer)
        with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*run `git lfs install` and"):
            SPIPolicyPipeline.from_pretrained(folder)
        (folder / name).write_bytes(content)
