"""Whole collections in the real simulator, interrupted in real processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from collection_factory import collect_one, start_collection, tiny_config

from spi_diffusers.collection.collector import clear_work, collect
from spi_diffusers.collection.config import CollectionError, CollectionSpec, load_collect_config
from spi_diffusers.collection.description import describe_collection, processor_name
from spi_diffusers.collection.episodes import read_shards, round_significant
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import get_task
from spi_diffusers.leftovers import name_aside
from spi_diffusers.locks import FolderInUseError, held

pytest.importorskip("bullet_safety_gym")
TASK = "OfflineBallCircle-v0"
CONFIG = tiny_config(runs=2)
DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A collection that nothing interrupted, with its work folder."""
    folder = tmp_path_factory.mktemp("reference") / "ball"
    progress = []
    collect_one("ballcircle", folder, CONFIG, keep_work=True, on_progress=progress.append)
    assert [(p.part, p.steps) for p in progress[:-2]] == [
        (name, steps) for name in ("run-0", "run-1") for steps in (0, 600, 1200, 1800, 2400)
    ]
    assert progress[-3].total == 2400
    assert progress[-3].episodes <= 12
    kept = sum(p.episodes for p in progress if p.steps == 2400)
    assert [(p.part, p.steps, p.episodes) for p in progress[-2:]] == [
        *(("writing", 0, kept), ("writing", 200 * kept, kept)),
    ]
    return folder


@pytest.fixture
def work_only(reference, tmp_path):
    """A folder with the finished work of the reference and no dataset yet."""
    folder = tmp_path / "ball"
    shutil.copytree(reference / ".collect", folder / ".collect")
    return folder


def sha256(folder):
    return load_transitions(folder, "ballcircle").sha256


def size(folder):
    return sum(file.stat().st_size for file in (folder / TASK).iterdir())


def test_dataset_holds_whole_rounded_episodes(reference):
    dataset = load_transitions(reference, "ballcircle")
    episodes = read_shards(sorted(reference.glob(".collect/*/*/episodes-*.safetensors")))
    assert dataset.num_episodes == len(episodes)  # all fit
    batch = dataset.transitions
    observation, following = batch.observation.numpy(), batch.next_observation.numpy()
    for values in (observation, following, batch.action.numpy()):
        np.testing.assert_array_equal(round_significant(values), values)
    ends = (batch.terminated | batch.truncated).numpy()
    np.testing.assert_array_equal(following[:-1][~ends[:-1]], observation[1:][~ends[:-1]])
    assert ends.sum() == len(episodes)
    assert dataset.episodes.return_.tolist() == pytest.approx([episode.return_ for episode in episodes])
    assert set(batch.cost.tolist()) <= {0.0, 1.0}


def test_card_says_how_it_was_made(reference):
    from importlib.metadata import version

    card = (reference / "README.md").read_text()
    options = "--task ballcircle --output ball --seed 0 --steps 2400 --runs 2 --max-bytes 7500000"
    assert f"by `spi data collect {options}`, with " in card
    assert "with `num_envs=3`, `num_probes=1`, " in card
    assert "PPO-Lagrangian" in card
    assert "cost targets of 0, 5, 10, 20, 40, 80 and fixed penalties of 0, 0.3, 1" in card
    assert "12 significant bits" in card
    for package in ("pybullet", "bullet-safety-gym", "gymnasium", "torch"):
        assert f"{package} {version(package)}" in card
    assert f". Processor: {processor_name()}. With other versions, or on another kind of processor," in card
    best = float(load_transitions(reference, "ballcircle").episodes.return_.max())
    share = re.search(r"The highest return is (\d+), (\d+)% of DSRL's reference maximum of 881;", card)
    assert int(share[1]) == round(best)
    assert f"These are all {load_transitions(reference, 'ballcircle').num_episodes} episodes" in card
    assert int(share[2]) == pytest.approx(100 * best / 881.46, abs=0.51)
    assert 'load_transitions("ball"' in card
    assert str(reference.parent) not in card


def test_card_tells_the_speed_targets():
    task = get_task("hoppervelocity")
    config = load_collect_config(task, speed_targets=(0.5, 0.9), penalties=(1.0,), speed_penalty=0.4)
    spec = CollectionSpec(task, DATASETS, config, max_bytes=1)
    text = describe_collection(load_transitions(DATASETS, task), spec, episodes_kept=1000)
    assert (
        "(fixed penalties of 1 and speed targets of 0.5, 0.9 times the cost's threshold, beyond which speed "
        "earned nothing and was penalized with a multiplier of 0.4)"
    ) in text
    assert "`speed_targets=(0.5, 0.9)`" in text  # the command alone would take the preset's


def test_workers_side_by_side_give_the_same_folder_as_one_after_the_other(reference, tmp_path):
    one, two, car = tmp_path / "one" / "ball", tmp_path / "two" / "ball", tiny_config("carrun", steps=600)
    shutil.copytree(reference, one, ignore=shutil.ignore_patterns(".collect"))
    collect_one("carrun", one, car)
    seen, written = set(), []
    specs = [
        CollectionSpec(*what, checkpoint_every=1) for what in ((TASK, two, CONFIG), ("carrun", two, car))
    ]
    datasets = collect(
        *specs,
        workers=2,
        on_progress=lambda progress: seen.add((progress.task, progress.part, progress.steps)),
        on_written=lambda spec, dataset: written.append((spec, len(dataset))),
    )
    played = {(TASK, f"run-{run}", steps) for run in (0, 1) for steps in (0, 600, 1200, 1800, 2400)}
    played |= {("OfflineCarRun-v0", "run-0", steps) for steps in (0, 600)}
    assert {progress for progress in seen if progress[1] != "writing"} == played
    assert written == [(spec, len(dataset)) for spec, dataset in zip(specs, datasets, strict=True)]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in (one, two)
    ]
    assert len(files[0]) == 9
    assert files[1] == files[0]
    assert sorted(path.name for path in two.iterdir()) == [TASK, "OfflineCarRun-v0", "README.md"]


def test_another_seed_gives_other_data(reference, tmp_path):
    other = collect_one("ballcircle", tmp_path / "ball", tiny_config(steps=600), seed=1)
    options = {"seed": 1, "full_precision": True, "description": "Made for a test."}
    same = collect_one("ballcircle", tmp_path / "again", tiny_config(steps=600), **options)
    assert other.num_episodes > 0
    assert len({other.sha256, same.sha256, sha256(reference)}) == 3
    exact = same.transitions.observation.numpy()
    assert (round_significant(exact) != exact).any()
    card = (tmp_path / "again" / "README.md").read_text()
    assert "Made for a test.\n\nCollected in the real simulator" in card


def wait_for(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.005)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_in_the_middle_the_same_call_gives_the_same_dataset(reference, tmp_path, workers):
    folder = tmp_path / "ball"
    process = start_collection(folder, workers=workers)
    wait_for(lambda: any(folder.glob(".collect/ballcircle/run-*/state-0002.safetensors")))
    started = children(process.pid)
    if workers > 1:  # one alone works in the process itself
        assert len(started) >= workers
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    wait_for(lambda: not any(map(is_running, started)), seconds=10)  # no worker outlives it
    assert not (folder / TASK).exists()
    collect_one("ballcircle", folder, CONFIG, checkpoint_every=1)
    assert sha256(folder) == sha256(reference)


@pytest.mark.slow
def test_a_killed_worker_is_an_error(tmp_path):
    def kill_one(progress):
        for child in multiprocessing.active_children()[:1]:  # none is left for a last report
            child.kill()

    with pytest.raises(CollectionError, match="a worker process was killed"):
        collect_one("ballcircle", tmp_path, tiny_config(runs=2, steps=10**6), workers=2, on_progress=kill_one)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_interruption_ends_the_workers_at_once(tmp_path):
    def interrupt(progress):
        if progress.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_one(
            "ballcircle", tmp_path, tiny_config(runs=2, steps=10**7), workers=2, on_progress=interrupt
        )
    assert not multiprocessing.active_children()


def test_max_bytes_is_kept_and_the_work_serves_again(work_only, reference):
    whole = size(reference)
    limit = whole * 3 // 4
    dataset = collect_one("ballcircle", work_only, CONFIG, max_bytes=limit, keep_work=True)
    assert size(work_only) <= limit
    everything = load_transitions(reference, "ballcircle")
    assert 0 < dataset.num_episodes < everything.num_episodes
    best = everything.episodes.best_return_within(40.0)
    assert dataset.episodes.best_return_within(40.0) == best
    again_options = {"keep_work": True, "overwrite": True}
    again = collect_one(
        "ballcircle", work_only, CONFIG, max_bytes=whole + 100, keep_work=True, overwrite=True
    )
    assert again.sha256 == everything.sha256
    assert not (work_only / ".collect" / "ballcircle" / "trial").exists()
    few = collect_one("ballcircle", work_only, CONFIG, max_bytes=limit // 2, **again_options)
    assert size(work_only) <= limit // 2
    assert 0 < few.num_episodes < dataset.num_episodes
    with pytest.raises(CollectionError, match=r"fits into 1000 bytes.*with a larger max_bytes"):
        collect_one("ballcircle", work_only, CONFIG, max_bytes=1000, overwrite=True)
    assert sha256(work_only) == few.sha256  # what was there is untouched
    assert (work_only / ".collect" / "ballcircle" / "run-0").is_dir()


def test_a_config_that_exists_needs_overwrite(work_only):
    first = collect_one("ballcircle", work_only, CONFIG, keep_work=True)
    with pytest.raises(FileExistsError, match=rf"{TASK}: exists already; .*--overwrite"):
        collect_one("ballcircle", work_only, CONFIG)
    assert collect_one("ballcircle", work_only, CONFIG, overwrite=True).sha256 == first.sha256
    assert not (work_only / ".collect").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, r"holds a collection with seed=0, not 1; give the same settings .* or remove"),
        ({"full_precision": True}, "holds a collection with full_precision=False, not True"),
        ({"config": tiny_config(runs=3)}, "holds a collection with runs=2, not 3"),
    ],
)
def test_work_of_another_collection_is_refused(work_only, options, message):
    before = sorted(path for path in work_only.rglob("*"))
    with pytest.raises(CollectionError, match=message):
        collect_one("ballcircle", work_only, **{"config": CONFIG, **options})
    assert sorted(path for path in work_only.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not complete"), ("[]", "must hold a JSON object")]
)
def test_a_broken_record_of_the_work_is_named(work_only, content, message):
    (work_only / ".collect" / "ballcircle" / "collect.json").write_text(content)
    with pytest.raises(CollectionError, match=f"collect.json {message}.*; remove .* to start again"):
        collect_one("ballcircle", work_only, CONFIG)


def test_two_collections_at_once_into_one_folder_are_refused(work_only):
    with (
        held(work_only / ".collect" / "ballcircle", "collection"),
        pytest.raises(FolderInUseError, match=r"another collection \(process"),
    ):
        collect_one("ballcircle", work_only, CONFIG)
    collect_one("ballcircle", work_only, CONFIG)


def test_a_collection_that_begins_as_another_one_ends_keeps_its_lock(work_only):
    work = work_only / ".collect" / "ballcircle"
    spec, second = CollectionSpec("ballcircle", work_only, CONFIG), held(work, "collection")
    collect(spec, on_written=lambda *_: second.__enter__())
    with pytest.raises(FolderInUseError, match=r"another collection \(process"):
        held(work, "collection").__enter__()
    second.__exit__(None, None, None)


def test_what_a_kill_after_the_writing_leaves_is_removed_and_what_was_kept_stays(reference, tmp_path):
    folder = shutil.copytree(reference, tmp_path / "ball")
    spec = CollectionSpec("ballcircle", folder, CONFIG)
    clear_work(spec)
    (folder / ".collect" / "ballcircle" / "kept").unlink()
    left = name_aside(spec.work)  # by a kill while it was being removed
    left.with_name(re.sub(r"-[0-9a-f]{8}-\d+\.", "-00000000-0.", left.name)).mkdir()
    clear_work(spec)
    assert not (folder / ".collect").exists()
    assert (folder / TASK / "stats.json").is_file()


def test_no_episode_cheap_enough(tmp_path):
    # With this seed and deviation all of them cost something.
    config = tiny_config(steps=600, max_cost_return=0.0, initial_log_std=-0.5)
    with pytest.raises(CollectionError, match=r"no episode was kept, as all of them cost too much"):
        collect_one("ballcircle", tmp_path, config, seed=2)
    assert not (tmp_path / TASK).exists()


def test_arguments_are_checked_before_any_work(tmp_path):
    folder, file = tmp_path / "new", tmp_path / "file"
    file.touch()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "README.md").write_text("---\nconfigs: 3\n---\n")
    for options, error, message in (
        ({"seed": -1}, ValueError, r"seed must be a whole number of at least 0, got -1"),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be a whole number of at least 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be a whole number of at least 1, got 0"),
        ({"seed": 1.5}, ValueError, r"seed must be a whole number of at least 0, got 1\.5"),
        ({"full_precision": 1}, ValueError, "full_precision must be true or false, got 1"),
        ({"folder": ""}, ValueError, "has an empty name"),
        ({"task": "balcircle"}, ValueError, "unknown task 'balcircle'"),
        ({"folder": file}, FileExistsError, "file: is a file; name a folder"),
        ({"folder": "dsrl"}, ValueError, "dsrl: is a reserved name of a dataset"),
        ({"folder": broken}, DatasetError, "README.md: the YAML header cannot be read"),
        ({"config": tiny_config(scripted_episodes=1)}, CollectionError, "only carcircle has a scripted"),
        ({"config": tiny_config(speed_targets=[0.9])}, CollectionError, "only a Velocity task's cost"),
        ({"task": "easysparse"}, ImportError, "MetaDrive|metadrive"),
    ):
        arguments = {"task": "ballcircle", "folder": folder, "config": CONFIG, **options}
        with pytest.raises(error, match=message):
            collect_one(**arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]


def test_other_tasks_of_the_folder_stay(work_only):
    from spi_diffusers.data.writing import write_parquet_dataset

    other = load_transitions("embedded").select_episodes(torch.arange(2))
    write_parquet_dataset(other, work_only, config_name="OfflineCarCircle-v0")
    collect_one("ballcircle", work_only, CONFIG)
    assert load_transitions(work_only, "carcircle").sha256 == other.sha256
    card = (work_only / "README.md").read_text()
    assert "| `OfflineCarCircle-v0` | 2 |" in card
    assert f"| `{TASK}` | " in card
    assert json.loads((work_only / TASK / "stats.json").read_text())["description"].startswith("Collected in")


@pytest.mark.slow
def test_behaviour_policies_learn(tmp_path):
    dataset = collect_one("ballcircle", tmp_path, load_collect_config("ballcircle", steps=80_000))
    assert dataset.episodes.best_return_within(40.0) > 400
    assert dataset.episodes.cost_return.max() <= get_task("ballcircle").cost_max


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_workers_start_is_one_line(tmp_path, seconds):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import sys; from spi_diffusers.cli import main; sys.exit(main())"
    words = ["data", "collect", "--task", "ballcircle", "--output", str(tmp_path / "set"), "--runs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--workers", "2", "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends the signal to all of a group
    )
    while not (tmp_path / "set" / ".collect" / "ballcircle" / "collect.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "spi data collect: interrupted\n")
