"""Checksums of a policy folder: damage is named before anything is loaded, in whichever file it is."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from pipeline_factory import full_pipeline, make_normalizer, make_pipeline, seeded

from spi_diffusers.models import GaussianActor, TwinCritic
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

RECORD = {"config": {"seed": 3}, "info": {"algorithm": "spi", "updates": 7}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, pipe = tmp_path_factory.mktemp("policy") / "policy", full_pipeline()
    pipe.training_record = RECORD
    pipe.save_pretrained(folder)
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flipped(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def state(pipe):
    weights = (pipe.components[name].state_dict() for name in ("noise_model", "reward_critic", "normalizer"))
    return pipe.config.gamma, [value.tolist() for part in weights for value in part.values()]


def actions(pipe):
    return pipe(torch.zeros(2, 3), cost_limit=5.0, generator=seeded()).candidates


def test_every_file_has_one(saved):
    sums = json.loads((saved / "model_index.json").read_text())["_sha256"]
    assert sums.keys() == files(saved).keys()


def test_a_flipped_bit_in_any_file_is_named(folder, caplog):
    draw = random.Random(0)
    for name, content in files(folder).items():
        for bit in draw.sample(range(8 * len(content)), 12):
            (folder / name).write_bytes(flipped(content, bit))
            with pytest.raises(ValueError, match=name.split("/")[0]):
                SPIPolicyPipeline.from_pretrained(folder)
        (folder / name).write_bytes(content)
    SPIPolicyPipeline.from_pretrained(folder)
    assert "checksums" not in caplog.text
    path = folder / "model_index.json"  # the flip that cannot be seen is not silent
    path.write_text(path.read_text().replace("_sha256", "_sha257"))
    SPIPolicyPipeline.from_pretrained(folder)
    assert "has no checksums, so damage would not be seen" in caplog.text


def test_a_file_that_the_disk_does_not_give_back_is_named(folder):
    path = folder / "safety_critic" / "critics.py"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and cannot be read
    with pytest.raises(ValueError, match=r"safety_critic/critics\.py is damaged"):
        SPIPolicyPipeline.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"gamma": 0.91}, {"_diffusers_version": "1.0"}, {"_sha256": []}])
def test_a_changed_setting_is_not_taken_for_the_trained_one(folder, change):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | change))
    with pytest.raises(ValueError, match=r"model_index\.json is damaged, or was changed.*delete the entry"):
        SPIPolicyPipeline.from_pretrained(folder)
    # What the message says is a way out.
    path.write_text(json.dumps({key: value for key, value in (index | change).items() if key != "_sha256"}))
    pipe = SPIPolicyPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder)
    SPIPolicyPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "noise_model/../../outside"])
def test_no_file_elsewhere_is_read(folder, name):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["_sha256"][name] = "00"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        SPIPolicyPipeline.from_pretrained(folder)


# ---- by diffusers alone, with the shipped code


def test_diffusers_loads_a_local_policy_by_its_code_and_sees_damage(folder):
    expected = actions(SPIPolicyPipeline.from_pretrained(folder))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(str(folder))
    pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    assert not isinstance(pipe, SPIPolicyPipeline)
    assert torch.equal(actions(pipe), expected)
    for name in ("reward_critic/diffusion_pytorch_model.safetensors", "model_index.json"):
        content = (folder / name).read_bytes()
        changed = (
            content[:-9] + b"7" + content[-8:] if name.endswith("s") else content.replace(b"0.9,", b"0.8,")
        )
        assert changed != content
        (folder / name).write_bytes(changed)
        with pytest.raises(ValueError, match=f"{name} is damaged.*force_download=True"):
            DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
        (folder / name).write_bytes(content)
    pipe.save_pretrained(folder / "again")  # without the package: no code, no checksums
    assert torch.equal(actions(SPIPolicyPipeline.from_pretrained(folder / "again")), expected)


def test_diffusers_loads_a_baseline_with_the_package(tmp_path):
    saved = BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer())
    saved.save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert type(pipe) is BaselinePolicyPipeline
    assert torch.equal(pipe(torch.zeros(2, 3)), saved(torch.zeros(2, 3)))


# ---- saving


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fp16"}, "variant='fp16' does not apply to a policy"),
        ({"max_shard_size": "1KB"}, "max_shard_size='1KB' does not apply to a policy"),
        ({"use_flashpack": True}, "use_flashpack=True does not apply"),
        ({"safe_serialization": False}, "safe_serialization=False would write a pickle"),
    ],
)
def test_a_form_that_cannot_be_loaded_is_not_saved(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline().save_pretrained(tmp_path / "policy", **options)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("option", ["variant", "custom_pipeline", "use_flashpack"])
def test_nor_loaded(folder, option):
    with pytest.raises(ValueError, match=f"{option}='fp16' does not apply to a policy; leave it out"):
        SPIPolicyPipeline.from_pretrained(folder, **{option: "fp16"})


@pytest.mark.parametrize("name", [None, "", 3, b"policy"])
def test_a_folder_must_be_named(name):
    with pytest.raises(ValueError, match="save_directory must name a folder, got"):
        make_pipeline().save_pretrained(name)


class OtherCritic(TwinCritic):
    """A component of the user, whose code is not in the package."""


@pytest.mark.parametrize("broken", ["weights", "class", "component", "settings", "file"])
def test_what_could_not_be_loaded_is_refused_and_the_folder_stays_as_it_was(folder, broken):
    pipe = SPIPolicyPipeline.from_pretrained(folder)
    before = files(folder)
    if broken == "weights":
        pipe.noise_model.net[0].bias.data[0] = torch.nan
    elif broken == "class":
        pipe.reward_critic = OtherCritic(
            **{k: v for k, v in pipe.reward_critic.config.items() if k[0] != "_"}
        )
    elif broken == "component":
        pipe.register_modules(normalizer=None)
    elif broken == "settings":
        pipe.register_to_config(gamma=-1.0)
    target = folder / "model_index.json" if broken == "file" else folder
    with pytest.raises(
        (ValueError, OSError), match=r"finite|OtherCritic|normalizer is missing|budget_r|is a file"
    ):
        pipe.save_pretrained(target)
    assert files(folder) == before
    with pytest.raises((ValueError, OSError)):
        pipe.save_pretrained(folder / "model_index.json" / "new" if broken == "file" else folder / "new")
    assert files(folder) == before
    assert not (folder / "new").exists()


def test_other_files_in_the_folder_stay(folder):
    (folder / "README.md").write_text("mine")
    make_pipeline(seed=1).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert not (folder / "train_info.json").exists()
    assert torch.equal(actions(SPIPolicyPipeline.from_pretrained(folder)), actions(make_pipeline(seed=1)))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_save_that_was_killed_half_way_is_seen(folder, tmp_path):
    """The index comes last, so until then the weights are not those of its checksums."""
    make_pipeline(seed=1).save_pretrained(tmp_path / "new")
    name = "noise_model/diffusion_pytorch_model.safetensors"
    shutil.copy(tmp_path / "new" / name, folder / name)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        SPIPolicyPipeline.from_pretrained(folder)
    make_pipeline(seed=1).save_pretrained(folder)
    SPIPolicyPipeline.from_pretrained(folder)


def save_killed(pipe, folder, moves):
    """Save in a process that dies at a move or removal; whether it came to its end before that."""
    child = os.fork()
    if child == 0:
        left = iter(range(moves))

        def dying(call):
            return lambda *args, **kwargs: (
                call(*args, **kwargs) if next(left, None) is not None else os._exit(9)
            )

        os.replace, os.rename, os.unlink = dying(os.replace), dying(os.rename), dying(os.unlink)
        try:
            pipe.save_pretrained(folder)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("other", ["settings", "weights"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_wherever_a_save_is_killed_the_old_or_the_new_policy_is_there_or_damage_is_seen(
    saved, tmp_path, is_alone, other
):
    old, new = SPIPolicyPipeline.from_pretrained(saved), make_pipeline(seed=1)
    if other == "settings":
        new = SPIPolicyPipeline.from_pretrained(saved)
        new.register_to_config(gamma=0.5)
    states = [[state(pipe), record] for pipe, record in ((old, RECORD), (new, None))]
    found, ended = [], False
    while not ended:
        folder = Path(shutil.copytree(saved, tmp_path / str(len(found)) / "policy"))
        if not is_alone:
            (folder / "README.md").write_text("mine")
        ended = save_killed(new, folder, len(found))
        try:
            loaded = SPIPolicyPipeline.from_pretrained(folder)
            found.append(states.index([state(loaded), loaded.training_record]))
        except FileNotFoundError as error:  # between both renames of the whole folder
            assert str(error).startswith(f"{folder}: no such folder")  # noqa: PT017
            found.append("gone")
        except ValueError as error:
            assert " is damaged, or was changed after the policy was saved" in str(error)  # noqa: PT017
            found.append("damaged")
        new.save_pretrained(folder)
        loaded = SPIPolicyPipeline.from_pretrained(folder)
        assert [state(loaded), loaded.training_record] == states[1]
        assert set(os.listdir(folder.parent)) == {"policy"}
        assert not (folder / "train_info.json").exists()
        assert (folder / "README.md").exists() != is_alone
    assert (found[0], found[-1]) == (0, 1)
    if is_alone:
        assert (found.count("gone"), found.count("damaged")) == (1, 0)


def test_a_folder_that_cannot_be_moved_is_kept_and_gets_the_files(saved, folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    folder.chmod(0o750)
    for name in (tmp_path / "link", Path()):
        monkeypatch.chdir(folder)
        make_pipeline(seed=1).save_pretrained(name)
        assert (tmp_path / "link").is_symlink()
        assert Path.cwd().samefile(folder)
        assert torch.equal(actions(SPIPolicyPipeline.from_pretrained(name)), actions(make_pipeline(seed=1)))
    monkeypatch.chdir(tmp_path)
    make_pipeline(seed=2).save_pretrained(folder)
    assert folder.stat().st_mode & 0o777 == 0o750
