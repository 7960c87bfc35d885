"""Which column plays which role: usual names, numbered columns, groups, and what is asked."""

import pyarrow as pa
import pyarrow.csv
import pytest
from table_factory import NAMED, robot_log, usual_log, write

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_tables
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset

BALL = get_task("ballcircle")


@pytest.mark.parametrize(
    "renamed",
    [
        {},
        {"observation": "obs", "next_observation": "next_obs", "action": "act"},
        {"observation": "state", "next_observation": "next_state", "action": "actions"},
        {"reward": "rewards", "cost": "costs", "terminated": "terminals", "truncated": "timeouts"},
        {"episode_index": "trajectory_id", "truncated": None},
    ],
    ids=str,
)
def test_usual_names_need_no_options(tmp_path, renamed):
    columns, log = usual_log(**renamed)
    loaded = load_tables(write(tmp_path / "log.csv", log))
    assert loaded.sha256 == TransitionDataset.from_columns(columns).sha256


def test_numbered_columns_are_in_natural_order_however_they_are_written(tmp_path):
    columns, log = usual_log()
    log = {
        name.replace("action_", "act[") + "]" * name.startswith("action_"): log[name]
        for name in reversed(log)
    }
    loaded = load_tables(write(tmp_path / "log.parquet", log))
    assert loaded.sha256 == TransitionDataset.from_columns(columns).sha256


@pytest.mark.parametrize(
    ("renamed", "more", "message"),
    [
        (
            {"observation": "obs"},
            "state",
            r"the observation may be column state or obs_0, obs_1, obs_2; say which ",
        ),
        (
            {"cost": "costly"},
            None,
            r"has no column with a usual name for the cost \(--cost-column\); name one with ",
        ),
        (
            {"episode_index": "episode"},
            "trajectory",
            r"the episode may be column episode or traject.*--episode-c",
        ),
        (
            {"terminated": "done", "truncated": None, "episode_index": None},
            None,
            r"nothing tells where an episode ends.*--episode-column.*Column 'done' may be one of these",
        ),
    ],
    ids=["two observations", "no cost", "two episodes", "done"],
)
def test_what_is_ambiguous_is_asked_with_the_option_that_answers(tmp_path, renamed, more, message):
    columns, log = usual_log(**renamed)
    if more is not None:
        log[more] = columns["reward"]
    with pytest.raises(DatasetError, match=rf"log\.parquet: .*{message}"):
        load_tables(write(tmp_path / "log.parquet", log))


def test_a_named_column_is_not_found_for_another_role(tmp_path):
    columns, log = usual_log(terminated="timeout", truncated=None)
    loaded = load_tables(write(tmp_path / "log.csv", log), columns=ColumnNames(terminated="timeout"))
    assert loaded.sha256 == TransitionDataset.from_columns(columns).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_1": None, "next_observation_1": None}, "of the observation must count on from 0 or 1"),
        ({"action_0": "action_3"}, "of the action must count on from 0 or 1, but are 'action_1', 'action_3'"),
        ({"observation_2": "observation_02"}, None),
        ({"action_1": "action_00"}, "must count on from 0 or 1, but are 'action_0', 'action_00'"),
        (
            {"action_1": "action.1"},
            r"the action may be column action_0 or action\.1; say which with --action",
        ),
        ({"action_1": "action[1]"}, r"the action may be column action_0 or action\[1\]; say which"),
        ({"next_observation_7": None}, "the observation has the columns .*, the next observation .*the same"),
        ({"reward": "observation", "x": "reward"}, "the observation may be column observation or observa"),
        ({name: f"{name[:-1]}{int(name[-1]) + 1}" for name in ("action_1", "action_0")}, None),
    ],
    ids=str,
)
def test_numbered_columns_have_one_style_and_no_gaps(tmp_path, change, message):
    columns, log = usual_log()
    log["x"] = columns["reward"]
    log = {change.get(name, name): values for name, values in log.items()}
    log.pop(None, None)
    path = write(tmp_path / "log.csv", log)
    if message is None:
        assert load_tables(path).sha256 == TransitionDataset.from_columns(columns).sha256
        return
    with pytest.raises(DatasetError, match=rf"log\.csv: .*{message}"):
        load_tables(path)
    by_name = ColumnNames(
        observation=("observation_?",), next_observation=("next_observation_?",), action=("action*",)
    )
    try:
        load_tables(path, columns=by_name)  # who names them decides
    except DatasetError as error:
        assert "dimensions" in str(error)  # noqa: PT017


@pytest.mark.parametrize("entries", [[0, 2], [3, 1, 0], [4]])
@pytest.mark.parametrize("names", [("observation_{}", "next_obs[{}]"), ("obs/a{}", "next_observations/a{}")])
def test_the_next_observation_has_the_entries_that_are_named_in_their_order(tmp_path, names, entries):
    columns, log = usual_log()
    for role, name in zip(("observation", "next_observation"), names, strict=True):
        log |= {name.format(i): log.pop(f"{role}_{i}") for i in range(8)}
    named = ColumnNames(observation=tuple(names[0].format(i) for i in entries))
    wanted = columns | {role: columns[role][:, entries] for role in ("observation", "next_observation")}
    path = write(tmp_path / "log.csv", log)
    assert load_tables(path, columns=named).sha256 == TransitionDataset.from_columns(wanted).sha256
    del log[names[1].format(entries[0])]
    with pytest.raises(
        DatasetError, match=r"both need the same ones, .* --next|a column may be missing. .* --next"
    ):
        load_tables(write(tmp_path / "log.csv", dict(log)), columns=named)


def test_a_list_of_one_is_a_number_and_lists_are_put_side_by_side(tmp_path):
    columns, _ = robot_log()
    log = {name: columns[name] for name in ("reward", "cost", "terminated", "truncated")}
    log |= {"a": list(columns["observation"][:, :5]), "b": columns["observation"][:, 5]}
    log |= {"c": list(columns["observation"][:, 6:]), "action_0": columns["action"][:, 0]}
    log |= {"action_1": list(columns["action"][:, 1:]), "next_observation": list(columns["next_observation"])}
    path = write(tmp_path / "log.parquet", {name: pa.array(values) for name, values in log.items()})
    loaded = load_tables(path, columns=ColumnNames(observation=("a", "b", "c")))
    assert loaded.sha256 == TransitionDataset.from_columns(columns).sha256


@pytest.mark.parametrize("done", ["done", "dones", "is_done", "Done"])
def test_a_flag_beside_the_episode_is_not_passed_over(tmp_path, done):
    columns, log = usual_log(terminated=done, truncated=None)
    path = write(tmp_path / "log.csv", log)
    with pytest.raises(DatasetError, match=rf"column '{done}' may say .*--terminated-column.*; say which"):
        load_tables(path)
    assert load_tables(path, columns=ColumnNames(terminated=done)).sha256
    with_both = write(tmp_path / "both.csv", usual_log()[1] | {done: columns["truncated"]})
    assert load_tables(with_both).sha256 == TransitionDataset.from_columns(columns).sha256


def test_an_episode_is_told_by_one_value_per_row(tmp_path):
    _, log = usual_log(truncated=None)
    log["episode_index"] = [[1]] * 9
    with pytest.raises(DatasetError, match=r"'episode_index' must hold one number or name per row, not list"):
        load_tables(write(tmp_path / "log.parquet", log))


def test_everything_that_is_missing_is_told_at_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n1,2\n")
    everything = r"no column 'c' for the cost .*observation \(--obs.*the action \(--act.*the reward \(--rew"
    with pytest.raises(DatasetError, match=everything):
        load_tables(path, columns=ColumnNames(cost="c"))


@pytest.mark.parametrize("more", [{}, {"next_observation_0": [2.0]}])
def test_one_row(tmp_path, more):
    log = {"observation_0": [1.0], "action_0": [0.5], "reward": [1.0], "cost": [0], "episode": [0]}
    path = write(tmp_path / "log.csv", log | more)
    assert len(load_tables(path)) == 1


def test_columns_and_files_may_have_raised_digits(tmp_path):
    columns, log = robot_log()
    for i in range(8):
        log[f"obs_{i}²" if i % 2 else f"obs_{i}"] = log.pop(f"obs_{i}")
    log["next_observation"] = pa.array([*columns["next_observation"]])
    write(tmp_path / "run_1².parquet", log)
    data = load_tables(tmp_path, columns=NAMED)
    assert data.transitions.observation.tolist() == columns["observation"].tolist()
