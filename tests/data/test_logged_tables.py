import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.streaming import exceeds_memory, open_stream
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import to_arrow

BALL = get_task("ballcircle")
NAMED = ColumnNames(
    observation=("obs_*",), action=("steer", "gas"), reward="r", cost="c", terminated="done", episode="run"
)


def robot_log(lengths=(3, 2, 4), terminated=(1,), **options):
    """A log as a robot writes it: one column per number, the run's name instead of episode ends."""
    columns = make_columns(lengths=lengths, terminated=terminated, **options)
    log = {f"obs_{i}": values for i, values in enumerate(columns["observation"].T)}
    log |= {"steer": columns["action"][:, 0], "gas": columns["action"][:, 1]}
    log |= {"r": columns["reward"], "c": columns["cost"].astype(int), "done": columns["terminated"]}
    log["run"] = np.repeat([f"run {k}" for k in range(len(lengths))], lengths)
    return columns, log


def write(path, log):
    table = pa.table(log) if isinstance(log, dict) else log
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    options = pyarrow.csv.WriteOptions(delimiter="\t" if ".tsv" in path.name else ",")
    with (
        pa.CompressedOutputStream(str(path), "gzip")
        if path.suffix.lower() == ".gz"
        else pa.OSFile(str(path), "wb") as stream
    ):
        pyarrow.csv.write_csv(table, stream, options)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_named_columns(tmp_path, name):
    columns, log = robot_log(observation_dim=11)  # obs_10 sorts after obs_2
    with pytest.warns(UserWarning, match=r"log.*took the following row.*last row of 2 truncated episodes"):
        data = load_tables(write(tmp_path / name, log), columns=NAMED)
    assert data.transitions.observation.tolist() == columns["observation"].tolist()
    assert data.transitions.action.tolist() == columns["action"].tolist()
    assert data.transitions.reward.tolist() == columns["reward"].tolist()
    assert data.transitions.cost.tolist() == columns["cost"].tolist()
    assert data.transitions.terminated.tolist() == columns["terminated"].tolist()
    assert data.transitions.truncated.tolist() == columns["truncated"].tolist()


def test_our_own_layout_needs_no_names(tmp_path):
    data = make_dataset(task=BALL, terminated=(0,))
    loaded = load_tables(write(tmp_path / "rows.parquet", to_arrow(data)), task=BALL)
    assert loaded.sha256 == data.sha256


@given(
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=5),
    value_type=st.sampled_from(["float64", "float32", "float16", "int64", "int8", "bool"]),
    flag_type=st.sampled_from(["bool", "int64", "uint8", "float32"]),
    list_type=st.sampled_from(["columns", "list", "fixed"]),
    has_next=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_any_numeric_types_give_the_same_data(
    tmp_path_factory, lengths, value_type, flag_type, list_type, has_next, seed
):
    columns = make_columns(lengths=tuple(lengths), observation_dim=3, seed=seed, terminated=(0,))
    table = {"reward": columns["cost"].astype(value_type), "cost": columns["cost"].astype(value_type)}
    table |= {name: columns[name].astype(flag_type) for name in ("terminated", "truncated")}
    vectors = ["observation", "action"] + (["next_observation"] if has_next else [])
    named = {}
    for name in vectors:
        if list_type == "columns":
            table |= {f"{name}.{i}": values for i, values in enumerate(columns[name].T)}
            named[name] = (f"{name}.*",)
        else:
            kind = pa.list_(pa.float32(), columns[name].shape[1] if list_type == "fixed" else -1)
            table[name] = pa.array(columns[name].tolist(), kind)
    path = write(tmp_path_factory.mktemp("t") / "t.parquet", table)
    expected = {name: columns[name] for name in COLUMNS} | {"reward": columns["cost"]}
    if has_next:
        data = load_tables(path, columns=ColumnNames(**named))
        assert data.sha256 == TransitionDataset.from_columns(expected).sha256
        return
    with pytest.warns(UserWarning, match="took the following row"):
        data = load_tables(path, columns=ColumnNames(**named))
    batch = data.transitions
    assert batch.observation.tolist() == columns["observation"].tolist()
    inside = ~(batch.terminated | batch.truncated)  # at an end the observation stands in
    wanted = columns["next_observation"][inside.numpy()]
    assert batch.next_observation[inside].tolist() == wanted.tolist()


BAD = {
    "unknown name": (
        {"reward": "gain"},
        {},
        r"has no column 'gain' for the reward \(--reward-column\); name one with ",
    ),
    "pattern without a match": ({"observation": ("o*x",)}, {}, r"no column 'o\*x' .*--observation-columns"),
    "NaN": ({}, {"r": np.full(9, np.nan)}, "column 'r' has 9 values that are not finite"),
    "empty cell": (
        {},
        {"c": [1, None] + [0] * 7},
        r"column 'c' has 1 missing values \(null\), first in row 1",
    ),
    "text": ({}, {"gas": ["much"] * 9}, "column 'gas' must hold numbers, not string"),
    "negative cost": ({}, {"c": [-1] * 9}, "column 'c' has the negative value -1 in row 0"),
    "flag of two": ({}, {"done": [2] * 9}, "column 'done' must hold only 0 and 1, but row 0 holds 2"),
    "end inside": ({}, {"done": [1] + [0] * 8}, "column 'run' holds 0 in row 1, but it changes exactly"),
    "run that goes on later": (
        {},
        {"run": list("aaabbaaaa")},
        "column 'run' uses one index for two episodes",
    ),
    "run without a name": ({}, {"run": ["a"] * 8 + [None]}, "column 'run' has 1 missing values"),
    "run with an empty name": (
        {},
        {"run": ["a"] * 6 + ["", "", "b"]},
        "column 'run' has 2 missing values, the first in row 6",
    ),
    "run that is NaN": (
        {},
        {"run": [1.0] * 8 + [np.nan]},
        "column 'run' has 1 missing values, the first in row 8",
    ),
    "list and number": ({"reward": "l"}, {"l": [[1.0]] * 9}, "column 'l' must hold one number per row"),
    "lists of two lengths": (
        {"action": ("l",)},
        {"l": [[1.0]] * 8 + [[1.0, 2.0]]},
        r"column 'l' holds lists of different lengths: \[1, 2\]",
    ),
    "no ends": (
        {"terminated": None, "episode": None},
        {},
        "nothing tells where an episode ends.*--episode-col",
    ),
    "no last end": ({"episode": None}, {}, r"the last episode \(rows 5 to 8\) has no end"),
}


@pytest.mark.parametrize(("names", "change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_tables(tmp_path, names, change, message):
    _, log = robot_log()
    path = write(tmp_path / "log.parquet", log | change)
    columns = ColumnNames(**(vars(NAMED) | names))
    with pytest.raises(DatasetError, match=rf"log\.parquet: .*{message}"):
        load_tables(path, columns=columns)


@pytest.mark.parametrize(
    ("names", "column", "first", "second"),
    [
        ({"action": ("gas", "obs_1")}, "obs_1", "observation", "action"),
        ({"cost": "r"}, "r", "reward", "cost"),
        ({"observation": ("obs_*", "st*")}, "steer", "observation", "action"),
        ({"observation": ("?",)}, "r", "observation", "reward"),
        ({"next_observation": ("obs_*",)}, "obs_0", "observation", "next_observation"),
        ({"episode": "done"}, "done", "terminated", "episode"),
        ({"truncated": "done"}, "done", "terminated", "truncated"),
    ],
)
def test_a_column_has_one_role(tmp_path, names, column, first, second):
    _, log = robot_log()
    path = write(tmp_path / "log.csv", log)
    roles = rf"both for the {first} \(--.*\) and for the {second} \(--"
    with pytest.raises(DatasetError, match=rf"log\.csv: column '{column}' is taken {roles}"):
        load_tables(path, columns=ColumnNames(**(vars(NAMED) | names)))


def test_task_fixes_dimensions_and_action_range(tmp_path):
    _, log = robot_log(observation_dim=5)
    with pytest.raises(
        DatasetError, match=r"column 'obs_0, obs_1, .*has 5 dimensions, but OfflineBallC.* has 8"
    ):
        load_tables(write(tmp_path / "log.csv", log), BALL, NAMED)
    _, log = robot_log()
    path = write(tmp_path / "log.csv", log | {"gas": np.full(9, 7.0)})
    with pytest.raises(DatasetError, match="column 'steer, gas' has 9 rows outside"):
        load_tables(path, BALL, NAMED)
    with pytest.warns(UserWarning, match="took the following row"):
        data = load_tables(path, BALL, NAMED, clip_actions=True)
    assert data.transitions.action[:, 1].tolist() == [1.0] * 9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty, not a table"),
        ("a.csv", b"x,y\n1,2\n3\n", "cannot be read as a table: .*Expected 2 columns, got 1"),
        ("a.csv", b"x,x\n1,2\n", "has several columns with the name 'x'"),
        ("a.parquet", b"PAR1 and no more", "is not a parquet file, or it is cut off or damaged"),
        ("a.csv.gz", b"no gzip", "is not a gzip file but something else"),
        ("a.xlsx", b"", "files with the suffix '.xlsx' are not known"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name}: {message}"):
        load_tables(tmp_path / name)


def test_header_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("observation,action,reward,cost,terminated\n")
    with pytest.raises(DatasetError, match=r"a\.csv: "):
        load_tables(tmp_path / "a.csv")


# ---- columns with usual names


def usual_log(**renamed):
    """A log with the names of our layout spread over columns; `renamed`: other names, None to leave out."""
    columns, _ = robot_log()
    log = {f"observation_{i}": values for i, values in enumerate(columns["observation"].T)}
    log |= {f"next_observation_{i}": values for i, values in enumerate(columns["next_observation"].T)}
    log |= {f"action_{i}": values for i, values in enumerate(columns["action"].T)}
    log |= {name: columns[name] for name in ("reward", "cost", "terminated", "truncated")}
    log["episode_index"] = np.repeat([4, 7, 9], (3, 2, 4))
    table = {}
    for name, values in log.items():
        stem, _, number = name.rpartition("_")
        new = renamed.get(name, renamed.get(stem, stem) + f"_{number}" if number.isdigit() else name)
        if new is not None:
            table[new] = values
    return columns, table


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


# ---- vectors over numbered columns


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


# ---- folders of tables


@pytest.mark.parametrize("suffix", ["csv", "CSV.GZ", "parquet", "tsv"])
@pytest.mark.parametrize("tells", ["nothing", "terminated", "ends", "episode", "constant"])
def test_a_folder_with_one_file_per_episode(tmp_path, suffix, tells):
    lengths = (3, 2, 4, *(2,) * 9)
    columns = make_columns(lengths=lengths, terminated=(1,))
    log = {name: columns[name] for name in ("reward", "cost")}
    for name in ("observation", "next_observation", "action"):
        log |= {f"{name}_{i}": values for i, values in enumerate(columns[name].T)}
    if tells in ("terminated", "ends"):
        log["terminated"] = columns["terminated"].astype(int)
    if tells == "ends":
        log["truncated"] = columns["truncated"].astype(int)
    if tells in ("episode", "constant"):
        log["episode"] = np.repeat(np.arange(len(lengths)) * (tells == "episode"), lengths)
    start = 0
    for number, length in enumerate(lengths):  # run_10 comes after run_9
        rows = {name: values[start : start + length] for name, values in log.items()}
        write(tmp_path / f"run_{number}.{suffix}", rows)
        start += length
    (tmp_path / "README.md").write_text("# Runs of a robot\n")  # a card that declares nothing
    (tmp_path / "notes.txt").write_text("not looked at")
    ended = (1,) if tells in ("terminated", "ends") else ()
    expected = TransitionDataset.from_columns(make_columns(lengths=lengths, terminated=ended))
    assert load_tables(tmp_path).sha256 == load_transitions(tmp_path).sha256 == expected.sha256
    assert not exceeds_memory(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be streamed.*spi data convert"):
        open_stream(tmp_path)


def test_numbered_parts_of_a_table_are_joined(tmp_path):
    data = make_dataset(lengths=(5, 4))
    table = to_arrow(data)
    for number, rows in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(rows, tmp_path / f"train-0000{number}-of-00002.parquet")
    assert load_tables(tmp_path).sha256 == data.sha256


@pytest.mark.parametrize("tells", ["nothing", "terminated", "constant"])
@pytest.mark.parametrize("name", ["file-{}", "ep-{}", "file-{}-of-3"])
@pytest.mark.parametrize("card", [False, True])
def test_no_episode_goes_on_in_another_file(tmp_path, name, tells, card):
    columns = make_columns(lengths=(5, 5, 5), terminated=(2,))
    log = {role: columns[role] for role in ("reward", "cost", *(["terminated"] * (tells == "terminated")))}
    vectors = {role: columns[role] for role in ("observation", "next_observation", "action")}
    log |= {"episode": np.zeros(15, int)} if tells == "constant" else {}
    for start in (0, 5, 10):
        rows = {role: values[start : start + 5] for role, values in log.items()}
        rows |= {role: pa.array([*values[start : start + 5]]) for role, values in vectors.items()}
        write(tmp_path / f"{name.format(start // 5)}.parquet", rows)
    if card:
        header = "---\nconfigs:\n- config_name: arm\n  data_files: '*.parquet'\n---\n"
        (tmp_path / "README.md").write_text(header)
    assert load_transitions(tmp_path).episodes.length.tolist() == [5, 5, 5]


@pytest.mark.parametrize("tells", ["truncated", "frame_index"])
def test_below_a_card_columns_may_tell_that_an_episode_goes_on(tmp_path, tells):
    data = make_dataset(lengths=(5, 4))
    table = to_arrow(data).drop_columns(
        ["truncated"] if tells == "frame_index" else ["episode_index", "frame_index"]
    )
    for number, rows in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(rows, tmp_path / f"000{number}.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: '*.parquet'\n---\n")
    assert load_transitions(tmp_path).sha256 == data.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": None}, r"b\.csv: has no column with a usual name for the cost"),
        (
            {f"next_observation_{i}": None for i in range(8)},
            r"b\.csv: has no column of the next .*a\.csv has",
        ),
        ({"action_1": None}, r"b\.csv: the action has 1 dimensions, but 2 in .*a\.csv"),
        (
            {"reward": ["1", "2", "x"] * 3},
            r"b\.csv: column 'reward' must hold numbers, not string such as 'x'",
        ),
        ({"reward": [1, 2, np.nan] * 3}, r"b\.csv: column 'reward' has 3 .*first in row 2"),
        ({"truncated": [False] * 9}, r"b\.csv: no episode ends"),
        ({"truncated": [True] * 8 + [False]}, r"b\.csv: the last episode"),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_folder_names_the_file(tmp_path, change, message):
    _, log = usual_log()
    del log["episode_index"]
    write(tmp_path / "a.csv", log)
    log |= {"terminated": [False] * 9} | change
    write(tmp_path / "b.csv", {name: values for name, values in log.items() if values is not None})
    with pytest.raises(DatasetError, match=message):
        load_tables(tmp_path)


def test_a_lfs_pointer_is_told(tmp_path):
    (tmp_path / "log.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        DatasetError, match=r"log\.parquet: is not a parquet file but a Git LFS poi.*lfs pull"
    ):
        load_tables(tmp_path / "log.parquet")


@pytest.mark.parametrize("width", [1, 40])
def test_parquet_that_unfolds_to_more_than_memory_is_not_read(tmp_path, little_memory, width):
    names = ("observation", "action", "reward", "cost", "terminated")
    rows = dict.fromkeys(names, pa.array(np.zeros(count := 2_600_000 // max(width, 4), np.int8)))
    rows["observation"] = pa.FixedSizeListArray.from_arrays(np.zeros(count * width, np.int8), width)
    pq.write_table(pa.table(rows), tmp_path / "log.parquet", compression="zstd")
    with pytest.raises(DatasetError, match=r"log\.parquet: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        load_tables(tmp_path / "log.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_that_fit_into_memory_only_one_by_one_are_not_read(tmp_path, little_memory, suffix):
    zeros = np.zeros(375_000, np.int8)
    log = dict.fromkeys(("observation_0", "action_0", "reward", "cost"), zeros)
    path = write(tmp_path / f"a.{suffix}", log)
    for name in "bcd":
        shutil.copy(path, tmp_path / f"{name}.{suffix}")
    # One alone is read, before it is found to have no end.
    with pytest.raises(DatasetError, match=rf"a\.{suffix}: nothing tells where an episode ends"):
        load_tables(path)
    with pytest.raises(DatasetError, match=rf"^{tmp_path}: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        load_tables(tmp_path)


@pytest.mark.slow
def test_well_compressed_data_is_loaded(tmp_path):
    rows, width = 80_000, 900  # 288 MB
    hot = np.zeros((rows, width), np.int8)
    hot[np.arange(rows), np.arange(rows) // 100] = 1
    observation = pa.FixedSizeListArray.from_arrays(hot.reshape(-1), width)
    zeros = np.zeros(rows, np.float32)
    log = {"observation": observation, "action": zeros, "reward": zeros, "cost": zeros}
    log["truncated"] = np.arange(rows) % 100 == 99
    log["next_observation"] = observation
    pq.write_table(pa.table(log), tmp_path / "log.parquet", compression="zstd")
    data = load_tables(tmp_path / "log.parquet")
    assert data.transitions.observation[-1].argmax() == 799
