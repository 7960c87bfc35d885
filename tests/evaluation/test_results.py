import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_factory import make_entry, make_train_info

from spi_diffusers.evaluation.entries import DivergedRun
from spi_diffusers.evaluation.results import (
    Results,
    ResultsFileError,
    merge_results,
    read_results,
    read_train_info,
    write_results,
)

LIGHT_MODULES = (
    *("results", "summary", "tables", "plots", "video", "assessment", "assess_warnings", "bounds"),
    *("certificate", "statement"),
)


def test_import_nothing_heavy():
    modules = [f"spi_diffusers.evaluation.{name}" for name in LIGHT_MODULES]
    code = (
        f"import sys, {', '.join(modules)}; "
        "print([name for name in ('torch', 'matplotlib', 'rich', 'gymnasium') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    with pytest.raises(FileNotFoundError, match=r"nothing\.json is missing"):
        read_results(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95 pickle?", "is not complete JSON: it is not in UTF-8: invalid start byte at byte 0"),
        (b'{"learning_rate": 0.001}', "is not a results file"),
        (b"[1, 2]", "must hold a JSON object, got list"),
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

    with pytest.raises(ResultsFileError, match=r"is not complete JSON: .*line \d+ column \d+"):
        read_results(path)


def test_bad_entry_is_named_by_its_number(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [make_entry(cost_limit=10), make_entry(cost_limit=20)])
    content = json.loads(path.read_text())
    content["entries"][1]["within_limit"] = 95
    path.write_text(json.dumps(content))

    with pytest.raises(ResultsFileError, match=r"entry 1: within_limit must be .*\[0, 1\], got 95"):
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
    with pytest.raises(ResultsFileError, match=r"train_info\.json: updates must be a whole number"):
        read_train_info(path)
    del content["dataset"]
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsFileError, match=r"train_info\.json: missing field 'dataset'"):
        read_train_info(path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        read_train_info(tmp_path / "none.json")


BALL = "OfflineBallCircle-v0"


def test_diverged_runs_stay_beside_the_entries(tmp_path):
    file = tmp_path / "results.json"
    runs = [DivergedRun(BALL, "spi", None, 3, "loss is nan"), DivergedRun(BALL, "cpq", 10.0, 0, "inf")]
    write_results(file, [make_entry()], runs)
    assert read_results(file).diverged == [runs[1], runs[0]]
    assert read_results(file) == [make_entry()]
    merge_results(file, [make_entry(train_seed=1)])
    assert read_results(file).diverged == [runs[1], runs[0]]
    assert len(read_results(file)) == 2
    write_results(file, [make_entry()])
    assert read_results(file).diverged == []
    assert "diverged" not in json.loads(file.read_text())


def test_a_run_with_results_did_not_diverge_after_all(tmp_path):
    file = tmp_path / "results.json"
    at_ten, at_twenty = (DivergedRun(BALL, "cpq", limit, 0, "inf") for limit in (10.0, 20.0))
    merge_results(file, [], [at_ten, at_twenty, DivergedRun(BALL, "cpq", 10.0, 1, "inf")])
    merge_results(file, [make_entry(algorithm="cpq", extraction="policy", feedback=False, cost_limit=10)])
    assert [(run.cost_limit, run.train_seed) for run in read_results(file).diverged] == [(10.0, 1), (20.0, 0)]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("none", "must be a list"),
        ([{"task": BALL}], "diverged run 0: missing fields 'algorithm', 'cost_limit'"),
        ([[]], "diverged run 0: must be an object with named fields"),
    ],
)
def test_what_is_no_list_of_runs_is_refused(tmp_path, runs, message):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"format_version": 1, "entries": [], "diverged": runs}))
    with pytest.raises(ResultsFileError, match=message):
        read_results(file)


# ---- what `evaluate` gives back


RESULTS = Results([make_entry(cost_limit=10), make_entry(cost_returns=(30.0, 40.0), cost_limit=20)])


def test_results_read_as_a_table():
    text = repr(RESULTS)
    assert "OfflineBallCircle-v0 (2 episodes, 1 training seed)" in text
    (first,) = [line for line in text.splitlines() if "✓ 0.80 ±0.57" in line]
    (second,) = [line for line in text.splitlines() if "✗ 1.75 ±0.35" in line]
    assert first.split()[0] == "10"
    assert second.split()[0] == "20"
    assert not any(line.endswith(" ") for line in text.splitlines())
    html = RESULTS._repr_html_()
    assert html.startswith("<pre")
    assert "✓ 0.80 ±0.57" in html
    assert repr(Results()) == "Results: no entries"


def test_results_as_a_data_frame():
    frame = RESULTS.to_frame()
    entry = make_entry().to_dict()
    nested = [f"{name}.{key}" for name in ("dataset", "versions") for key in entry.pop(name)]
    last = ["risk", "cost_margin", "cost_p90", "cost_worst"]
    plain = [name for name in entry if name not in last]
    assert list(frame.columns) == [*plain, *nested, *last]
    old = Results([dataclasses.replace(RESULTS[0], cost_p90=None, cost_worst=None)]).to_frame()
    assert list(old.columns) == list(frame.columns)
    assert frame.cost_limit.tolist() == [10.0, 20.0]
    assert frame["dataset.sha256"][0] == RESULTS[0].dataset["sha256"]
    assert list(Results().to_frame().columns) == [*plain, *last]


def test_entries_of_one_key_are_shown_as_no_table():
    twice = Results(RESULTS)
    twice += RESULTS
    assert repr(twice).startswith("Results: 4 entries that make no table: two entries have the key")
    assert repr(Results([1])).startswith("Results: 1 entries that make no table")


def test_saved_results_are_a_results_file(tmp_path):
    lost = DivergedRun(BALL, "spi", None, 3, "loss is nan")
    path = Results(RESULTS, diverged=[lost]).save(tmp_path / "new" / "results.json")
    found = read_results(path)
    assert (found, found.diverged) == (RESULTS, [lost])


def test_results_draw_themselves(tmp_path):
    figure = RESULTS.plot(tmp_path / "limits.png")
    assert (tmp_path / "limits.png").stat().st_size > 10_000
    assert figure.axes[0].get_title() == RESULTS.plot().axes[0].get_title() == "Reward"
    assert os.listdir(tmp_path) == ["limits.png"]


def test_a_slice_is_results_too():
    results = Results([make_entry(cost_limit=10), make_entry(cost_limit=20)])
    assert isinstance(results[1:], Results)
    assert [entry.cost_limit for entry in results[1:]] == [20.0]
    assert results[0].cost_limit == 10.0


def of_mujoco(version, **changes):
    """An entry of a Velocity task."""
    return dataclasses.replace(
        make_entry(**changes), task="OfflineHopperVelocityGymnasium-v1", versions={"mujoco": version}
    )


def test_results_of_a_simulator_that_moves_otherwise_are_kept_apart(tmp_path):
    path = tmp_path / "results.json"
    merge_results(path, [of_mujoco("2.3.3")])
    merge_results(path, [of_mujoco("2.3.7", cost_limit=20), make_entry()])
    before = path.read_text()
    message = (
        r"results.json: holds results of OfflineHopper\S+ by mujoco 2\.3, which moves otherwise than mujoco4"
    )
    with pytest.raises(ResultsFileError, match=message):
        merge_results(path, [of_mujoco("4.0.0", cost_limit=40)])
    assert path.read_text() == before
    merge_results(tmp_path / "other.json", [of_mujoco("4.1.0")])
    with pytest.raises(ResultsFileError, match="by mujoco4, which moves otherwise than mujoco3"):
        merge_results(tmp_path / "other.json", [of_mujoco("3.3.7")])
