"""A logged table in one file becomes a dataset: names, types, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from data_factory import make_columns, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from table_factory import NAMED, robot_log, write

from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.loading import load_tables
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import to_arrow

BALL = get_task("ballcircle")


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
