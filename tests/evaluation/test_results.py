import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_factory import make_entry, make_train_info

from spi_diffusers.evaluation.results import (
    ResultsFileError,
    merge_results,
    read_results,
    read_train_info,
    write_results,
)


def test_round_trip_and_order(tmp_path):
    path = tmp_path / "new" / "results.json"
    entries = [make_entry(cost_limit=20), make_entry(cost_limit=10), make_entry(train_seed=1)]
    write_results(path, entries)

    assert read_results(path) == sorted(entries, key=lambda entry: entry.key)
    content = json.loads(path.read_text())
    assert list(content) == ["format_version", "entries"]
    assert content["format_version"] == 1
    assert [(e["cost_limit"], e["train_seed"]) for e in content["entries"]] == [(10, 0), (10, 1), (20, 0)]


def test_the_same_entries_give_the_same_bytes(tmp_path):
    entries = [make_entry(cost_limit=limit) for limit in (10, 20, 40)]
    write_results(tmp_path / "a.json", entries)
    write_results(tmp_path / "b.json", reversed(entries))

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_merge_replaces_the_same_key_and_keeps_the_rest(tmp_path):
    path = tmp_path / "results.json"
    merge_results(path, [make_entry(cost_limit=10), make_entry(cost_limit=20)])
    newer = make_entry([1.0, 2.0], [0.0, 0.0], cost_limit=20)
    returned = merge_results(path, [newer, make_entry(cost_limit=20, feedback=False)])

    assert returned == read_results(path)
    assert len(returned) == 3
    assert newer in returned
    assert make_entry(cost_limit=10) in returned


def _merge_one(path, seed):
    merge_results(path, [make_entry(train_seed=seed)])


def test_merges_side_by_side_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_merge_one, args=(path, seed)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [entry.train_seed for entry in read_results(path)] == list(range(8))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results file at .*nothing\.json"):
        read_results(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95 pickle?", "is not a results file: it is not text"),
        (b'{"learning_rate": 0.001}', "is not a results file"),
        (b"[1, 2]", "is not a results file"),
        (b'{"format_version": 2, "entries": []}', "has format version 2, this spi-diffusers reads up to 1"),
        (b'{"format_version": "1", "entries": []}', "format_version must be 1"),
        (b'{"format_version": 1}', "'entries' must be a list"),
        (b'{"format_version": 1, "entries": [], "more": 1}', "unknown field 'more'"),
        (b'{"format_version": 1, "entries": [{}]}', "entry 0: missing fields 'task'"),
        (b"", "is not complete JSON"),
    ],
)
def test_file_that_cannot_be_read_is_named_and_left_alone(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)

    with pytest.raises(ResultsFileError, match=message) as error:
        merge_results(path, [make_entry()])
    assert str(path) in str(error.value)
    assert path.read_bytes() == content


def test_half_written_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [make_entry()])
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])

    with pytest.raises(ResultsFileError, match=r"is not complete JSON \(line \d+, column \d+"):
        read_results(path)


def test_bad_entry_is_named_by_its_number(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [make_entry(cost_limit=10), make_entry(cost_limit=20)])
    content = json.loads(path.read_text())
    content["entries"][1]["within_limit"] = 95
    path.write_text(json.dumps(content))

    with pytest.raises(ResultsFileError, match="entry 1: field 'within_limit' must be a number from 0 to 1"):
        read_results(path)


def test_same_key_twice(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ResultsFileError, match="two entries have the key"):
        write_results(path, [make_entry(), make_entry()])
    assert not path.exists()


def test_no_space_left_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [make_entry()])
    before = path.read_bytes()
    # A limit on the size of files stands in for a full disk: the kernel refuses to write on.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from evaluation_factory import make_entry\n"
        "from spi_diffusers.evaluation.results import merge_results\n"
        f"merge_results({str(path)!r}, [make_entry(cost_limit=40)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.getcwd()])},
    )
    assert f"OSError: [Errno 27] cannot write {path}" in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_results(tmp_path, [make_entry()])


def test_train_info_file(tmp_path):
    path = tmp_path / "train_info.json"
    content = dataclasses.asdict(make_train_info(train_seed=4))
    path.write_text(json.dumps({**content, "versions": {"torch": "2.13.0"}}))
    assert read_train_info(path) == make_train_info(train_seed=4)

    path.write_text(json.dumps({**content, "updates": -1}))
    with pytest.raises(ResultsFileError, match=r"train_info\.json: field 'updates' must be an integer"):
        read_train_info(path)
    del content["dataset"]
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsFileError, match=r"train_info\.json: missing field 'dataset'"):
        read_train_info(path)
    with pytest.raises(FileNotFoundError, match="no train info file at"):
        read_train_info(tmp_path / "none.json")
