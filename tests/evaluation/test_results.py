import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_factory import BALL_CIRCLE, make_entry, make_train_info

from spi_diffusers.evaluation.entries import DivergedRun, EpisodeStatistics, EvaluationEntry, check_cost_limit
from spi_diffusers.evaluation.results import (
    Results,
    ResultsFileError,
    merge_results,
    read_results,
    read_train_info,
    write_results,
)

LIGHT_MODULES = ("results", "summary", "tables", "plots", "video")


def test_entry_figures_by_hand():
    entry = make_entry([600.0, 700.0, 650.0, 650.0], [4.0, 12.0, 10.0, 10.0], cost_limit=10)

    assert entry.episodes == 4
    assert entry.reward_mean == 650.0
    assert entry.reward_std == pytest.approx((2 * 50.0**2 / 3) ** 0.5)  # sample: n - 1
    assert entry.cost_mean == 9.0
    assert entry.cost_std == pytest.approx(((25 + 9 + 1 + 1) / 3) ** 0.5)
    scale = BALL_CIRCLE.reward_max - BALL_CIRCLE.reward_min
    assert entry.normalized_reward == pytest.approx((650.0 - BALL_CIRCLE.reward_min) / scale)
    assert entry.normalized_cost == pytest.approx(0.9)
    assert entry.within_limit == 0.75  # a cost return equal to the limit keeps it


def test_limit_zero_is_normalized_with_one_added():
    entry = make_entry([1.0, 1.0], [0.0, 3.0], cost_limit=0)

    assert entry.normalized_cost == 2.5  # (1.5 + 1) / (0 + 1)
    assert entry.within_limit == 0.5


def test_single_episode_has_no_spread():
    entry = make_entry([5.0], [1.0])

    assert (entry.reward_std, entry.cost_std) == (0.0, 0.0)


def test_fields_are_those_of_the_results_schema():
    expected = (
        "task, algorithm, extraction, cost_limit, feedback, train_seed, eval_seeds, episodes, updates, "
        "train_seconds, reward_mean, reward_std, cost_mean, cost_std, normalized_reward, normalized_cost, "
        "within_limit, steps_per_second, dataset, versions"
    )
    assert ", ".join(make_entry().to_dict()) == expected


def test_dict_round_trip():
    entry = make_entry(eval_seeds=(3, 4))

    assert EvaluationEntry.from_dict(entry.to_dict()) == entry


def test_numpy_numbers_become_python_numbers():
    entry = dataclasses.replace(
        make_entry(), train_seed=np.int64(3), eval_seeds=(np.int64(1),), reward_mean=np.float32(0.5)
    )

    assert type(entry.train_seed) is type(entry.eval_seeds[0]) is int
    assert type(entry.reward_mean) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "OfflineMoonCircle-v0"),
        ("task", 3),
        ("algorithm", ""),
        ("cost_limit", -1.0),
        ("cost_limit", True),
        ("feedback", 1),
        ("train_seed", 1.5),
        ("eval_seeds", []),
        ("eval_seeds", [-1]),
        ("episodes", 0),
        ("reward_mean", float("nan")),
        ("reward_mean", "12"),
        ("cost_std", -0.1),
        ("within_limit", 1.01),
        ("dataset", {"id": "x"}),
        ("versions", {"torch": 2}),
    ],
)
def test_value_of_the_wrong_kind_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must "):
        EvaluationEntry.from_dict({**make_entry().to_dict(), field: value})


def test_missing_and_unknown_fields_are_named():
    values = make_entry().to_dict()
    without = {name: value for name, value in values.items() if name not in ("updates", "cost_std")}

    with pytest.raises(ValueError, match="missing fields 'updates', 'cost_std'"):
        EvaluationEntry.from_dict(without)
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        EvaluationEntry.from_dict({**values, "colour": "red"})
    with pytest.raises(ValueError, match="must be an object"):
        EvaluationEntry.from_dict([1, 2])


def test_arrays_that_are_no_episodes():
    with pytest.raises(ValueError, match="at least one episode"):
        make_entry([], [])
    with pytest.raises(ValueError, match="2 returns for 1 cost returns"):
        make_entry([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="the cost return of episode 1 is nan"):
        make_entry([1.0, 2.0], [1.0, float("nan")])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        EpisodeStatistics.of("return", [[1.0, 2.0]])


@pytest.mark.parametrize("limit", [-1, float("inf"), float("nan"), "10", None, True])
def test_bad_cost_limit(limit):
    with pytest.raises(ValueError, match="a cost limit must be a finite number of at least 0"):
        check_cost_limit(limit)


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
        (b"\x80\x04\x95 pickle?", "is not complete JSON: 'utf-8' codec can't decode"),
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


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "ballcircle"), ("algorithm", ""), ("cost_limit", -1.0), ("train_seed", -1), ("message", 3)],
)
def test_every_field_is_checked(field, value):
    values = DivergedRun(BALL, "spi", None, 3, "loss is nan").to_dict()
    assert DivergedRun.from_dict(values).to_dict() == values
    with pytest.raises(ValueError, match=field.replace("_", ".")):
        DivergedRun.from_dict({**values, field: value})


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
    assert list(frame.columns) == [*entry, *nested]
    assert frame.cost_limit.tolist() == [10.0, 20.0]
    assert frame["dataset.sha256"][0] == RESULTS[0].dataset["sha256"]
    assert list(Results().to_frame().columns) == list(entry)


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
