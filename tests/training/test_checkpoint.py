import json
import logging
import os
import shutil
import subprocess

import pytest
import torch
from torch import nn

from spi_diffusers.algorithms.networks import CriticStack
from spi_diffusers.models import TwinCritic
from spi_diffusers.training.checkpoint import (
    STATE_FILE,
    TENSORS_FILE,
    CheckpointError,
    CheckpointStore,
    CheckpointWriteError,
    first_non_finite,
)


def make_tensors(value=0.0):
    generator = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(4, 3, generator=generator) + value,
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4, 2),
        "random": generator.get_state(),
    }


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_what_is_saved_is_loaded_bit_for_bit(store):
    tensors = make_tensors()
    folder = store.save(12, tensors, {"seconds": 0.1 + 0.2, "nested": {"a": [1, None]}})
    assert folder.name == "step-00000012"
    loaded = store.load_newest()
    assert (loaded.step, loaded.folder) == (12, folder)
    assert loaded.state["seconds"] == 0.1 + 0.2
    assert loaded.state["nested"] == {"a": [1, None]}
    assert loaded.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert torch.equal(loaded.tensors[name], value)


def test_critics_that_share_memory_are_saved_whole(store):
    critics = [TwinCritic(observation_dim=3, action_dim=2, hidden_dims=[8]) for _ in range(2)]
    stack = CriticStack(critics)
    tensors = {f"own/{k}": v for k, v in critics[0].state_dict().items()} | dict(stack.state_dict())
    store.save(1, tensors, {})
    loaded = store.load(1).tensors
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_what_a_run_has_overtaken_goes_first(store):
    """Damaged ones ahead of the step that a run went on from must not push out those that it makes."""
    store = CheckpointStore(store.folder, keep=1)
    store.save(12, make_tensors(12), {})
    store.save(9, make_tensors(9), {})
    assert store.steps() == [9]


def test_only_the_newest_are_kept_and_nothing_is_a_pickle(store):
    for step in (5, 10, 1_000_000_000):
        store.save(step, make_tensors(step), {})
    assert store.steps() == [10, 1_000_000_000]
    entries = sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*"))
    files = [
        f"{name}/{file}"
        for name in ("step-00000010", "step-1000000000")
        for file in (STATE_FILE, TENSORS_FILE)
    ]
    assert entries == sorted([*files, "step-00000010", "step-1000000000"])


def damage_truncate(folder):
    os.truncate(folder / TENSORS_FILE, (folder / TENSORS_FILE).stat().st_size - 1)


def damage_flip(folder):
    content = bytearray((folder / TENSORS_FILE).read_bytes())
    content[-3] ^= 1
    (folder / TENSORS_FILE).write_bytes(content)


def damage_remove_tensors(folder):
    (folder / TENSORS_FILE).unlink()


def damage_remove_state(folder):
    (folder / STATE_FILE).unlink()


def damage_half_state(folder):
    text = (folder / STATE_FILE).read_text()
    (folder / STATE_FILE).write_text(text[: len(text) // 2])


def damage_edit_state(folder):
    content = json.loads((folder / STATE_FILE).read_text())
    (folder / STATE_FILE).write_text(json.dumps(content | {"note": "changed by hand"}))


def damage_swap(folder):
    shutil.copy(folder.parent / "step-00000005" / TENSORS_FILE, folder / TENSORS_FILE)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (damage_truncate, r"training_state.safetensors: has \d+ bytes instead of \d+"),
        (damage_flip, r"training_state.safetensors: its content has changed"),
        (damage_remove_tensors, r"training_state.safetensors: cannot be read"),
        (damage_remove_state, r"training_state.json is missing"),
        (damage_half_state, r"training_state.json is not complete JSON"),
        (damage_edit_state, r"training_state.json: its content has changed"),
        (damage_swap, r"training_state.safetensors: its content has changed"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(store, caplog, damage, complaint):
    store.save(5, make_tensors(5), {"note": "older"})
    damage(store.save(10, make_tensors(10), {"note": "newer"}))
    with pytest.raises(CheckpointError, match=complaint):
        store.load(10)
    with caplog.at_level(logging.WARNING):
        loaded = store.load_newest()
    assert (loaded.step, loaded.state["note"]) == (5, "older")
    assert torch.equal(loaded.tensors["weight"], make_tensors(5)["weight"])
    assert "step-00000010" in caplog.text
    store.save(10, make_tensors(10), {"note": "again"})  # and the damaged one can be replaced
    assert store.load_newest().state["note"] == "again"


def test_no_checkpoint_is_none_but_only_damaged_ones_are_an_error(store):
    assert store.load_newest() is None
    damage_flip(store.save(5, make_tensors(), {}))
    with pytest.raises(CheckpointError, match="No complete checkpoint is left"):
        store.load_newest()


def test_a_checkpoint_of_a_later_format_is_refused(store):
    folder = store.save(5, make_tensors(), {})
    content = json.loads((folder / STATE_FILE).read_text())
    (folder / STATE_FILE).write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(CheckpointError, match="format version 1"):
        store.load(5)


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path):
    """On a real file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        store = CheckpointStore(disk / "checkpoints", keep=5)
        big = {"weight": torch.randn(100_000)}  # 0.4 MB
        store.save(5, big, {})
        store.save(10, big, {})
        with pytest.raises(CheckpointWriteError, match=r"step-00000015.*No space left.*step 10 is intact"):
            store.save(15, big, {})
        assert {path.name for path in store.folder.iterdir()} == {"step-00000005", "step-00000010"}
        assert torch.equal(store.load_newest().tensors["weight"], big["weight"])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointWriteError, match="No earlier checkpoint"):
        CheckpointStore(tmp_path / "checkpoints").save(1, make_tensors(), {})


def test_first_non_finite_names_the_tensor():
    linear = nn.Linear(2, 2)
    assert first_non_finite(linear.state_dict() | make_tensors()) is None
    linear.bias.data[1] = float("inf")
    assert first_non_finite(linear.state_dict()) == "bias"
