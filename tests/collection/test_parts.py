"""One part of a collection on disk: what is there after each round, and what is made of remains."""

import shutil

import pytest
from collection_factory import tiny_config

from spi_diffusers.collection.config import CollectionError, CollectionSpec
from spi_diffusers.collection.parts import Part, play_part, shard_files

pytest.importorskip("bullet_safety_gym")


def make_part(folder, checkpoint_every=1):
    spec = CollectionSpec("ballcircle", folder, tiny_config(steps=1800), checkpoint_every=checkpoint_every)
    return Part(spec, "run-0", seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    part = make_part(tmp_path_factory.mktemp("part") / "finished")
    progress = list(play_part(part))
    assert [one.steps for one in progress] == [0, 600, 1200, 1800]
    assert progress[0].best == {10.0: None, 20.0: None, 40.0: None, 80.0: None}
    return part


def names(folder):
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


def contents(folder):
    return [path.read_bytes() for path in shard_files(folder)]


def test_episodes_and_one_state_are_on_disk(finished):
    assert names(finished.folder) == ["episodes-0000", "episodes-0001", "episodes-0002", "state-0003"]


def test_a_finished_part_plays_nothing(finished):
    before = contents(finished.folder)
    (progress,) = play_part(finished)
    assert (progress.steps, progress.total) == (1800, 1800)
    assert progress.episodes > 0
    assert progress.best[80.0] is not None
    assert contents(finished.folder) == before


def test_checkpoints_do_not_change_what_is_kept(finished, tmp_path):
    part = make_part(tmp_path / "seldom", checkpoint_every=1000)
    list(play_part(part))
    assert names(part.folder) == ["episodes-0000", "episodes-0001", "state-0002"]
    assert (part.folder / "state-0002.safetensors").read_bytes() == (
        finished.folder / "state-0003.safetensors"
    ).read_bytes()


def test_episodes_without_their_state_are_played_again(finished, tmp_path):
    """As if it had been killed after the episodes of the second round, and before their state."""
    part = make_part(tmp_path / "cut")
    playing = play_part(part)
    assert [next(playing).steps for _ in range(2)] == [0, 600]
    shutil.copy(part.folder / "state-0001.safetensors", tmp_path)
    next(playing)
    playing.close()
    (part.folder / "state-0002.safetensors").unlink()
    shutil.copy(tmp_path / "state-0001.safetensors", part.folder)
    assert names(part.folder) == ["episodes-0000", "episodes-0001", "state-0001"]
    assert [one.steps for one in play_part(part)] == [600, 1200, 1800]
    assert names(part.folder) == names(finished.folder)
    assert contents(part.folder) == contents(finished.folder)


def test_files_that_cannot_be_read_are_named(finished, tmp_path):
    part = make_part(tmp_path / "broken")
    shutil.copytree(finished.folder, part.folder)
    state, shard = part.folder / "state-0003.safetensors", part.folder / "episodes-0001.safetensors"
    good = state.read_bytes()
    state.write_bytes(good[:-9])
    with pytest.raises(CollectionError, match=r"state-0003.safetensors: cannot be resumed from .* delete"):
        next(play_part(part))
    state.write_bytes(shard.read_bytes())
    with pytest.raises(CollectionError, match=r"state-0003.safetensors: cannot be resumed from"):
        next(play_part(part))
    state.write_bytes(good)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(
        CollectionError, match=r"episodes-0001.safetensors: is not a file of collected episodes"
    ):
        next(play_part(part))
