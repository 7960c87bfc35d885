"""Files of episodes that were played elsewhere, and what is said of damaged ones."""

import json

import numpy as np
import pandas as pd
import pytest

from spi_diffusers.evaluation.logged_costs import read_logged_costs

ROWS = [
    {"limit": 20, "episode": 0, "cost": 3.5},
    {"limit": 20, "episode": 1, "cost": 21},
    {"limit": 10, "episode": 0, "cost": 0},
]


def write(path, rows=ROWS):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet", "log.json", "LOG.JSON"])
def test_costs_by_limit(tmp_path, name):
    path = tmp_path / name
    rows = [{**row, "note": "windy"} for row in ROWS]
    if name == "LOG.JSON":
        path.write_text(json.dumps(rows))
    else:
        write(path, rows)
    found = read_logged_costs(path)
    assert {limit: costs.tolist() for limit, costs in found.items()} == {20.0: [3.5, 21.0], 10.0: [0.0]}
    assert all(costs.dtype == np.float64 for costs in found.values())


def test_several_costs_are_columns_by_their_names(tmp_path):
    path = write(tmp_path / "log.csv", [{"episode": k, "wear": 5000.0 * k, "leak": 0.003} for k in range(2)])
    found = read_logged_costs(path, ("leak", "wear"))
    assert {limit: costs.tolist() for limit, costs in found.items()} == {None: [[0.003, 0], [0.003, 5000]]}
    path = write(tmp_path / "told.csv", [{"limit": 1, "episode": 0, "wear": 5000.0, "leak": 0.003}])
    with pytest.raises(ValueError, match=r"told\.csv: has a column 'limit', but of several costs"):
        read_logged_costs(path, ("leak", "wear"))


def test_without_limits_they_are_of_one(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("episode;cost\nmonday;3,5\ntuesday;4,5\n")
    (costs,) = read_logged_costs(path).values()
    assert costs.tolist() == [3.5, 4.5]
    assert list(read_logged_costs(path)) == [None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episode,cost\n0,1\n\n1,nan\n", "line 4: cost must be a finite number of at least 0, got nothing"),
        ("episode,cost\n0,1\n1,\n", "line 3: cost must be .*, got nothing, or NaN"),
        ("episode,cost\n0,1\n1,-2\n", r"line 3: cost must be .*, got -2"),
        ("episode,cost\n0,1\n1,inf\n", "line 3: cost must be .*, got inf"),
        ("episode,cost\n0,1\n1,cheap\n", "line 3: cost must be .*, got 'cheap'"),
        ("sep=,\nepisode,cost\n0,1\n1,-2\n", "line 4: cost"),
        ("episode,cost\n7,1\n8,1\n7,3\n", "line 4: episode 7 is there twice, before in line 2"),
        ("limit,episode,cost\n5,a,1\n9,a,1\n5,a,3\n", "line 4: episode 'a' of limit 5 is there twice"),
        ("limit,episode,cost\n-5,a,1\n", "line 2: limit must be .*, got -5"),
        ("episode,cost\n,1\n1,1\n", "line 2: episode must be a number or a name, got None"),
        ("episode,price\n0,1\n", "has no column 'cost', but 'episode', 'price'; it takes a row per episode"),
        ("cost\n0\n", "has no column 'episode', but 'cost'"),
        ("episode,cost\n", "holds no episode"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"log.csv: {message}"):
        read_logged_costs(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"episode": 0, "cost": 1}, {"episode": 1}], "row 2: cost must be .*, got nothing"),
        ([{"episode": 0, "cost": True}], "row 1: cost must be .*, got True"),
        ([{"episode": [0], "cost": 1}], r"row 1: episode must be a number or a name, got \[0\]"),
        ([{"episode": 0, "cost": 10**400}], "row 1: cost must be"),
        ({"episode": [0], "cost": [1]}, "must hold a list of objects"),
        ([3], "must hold a list of objects"),
        ([], "holds no episode"),
    ],
)
def test_json_of_something_else(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"log.json: {message}"):
        read_logged_costs(write(tmp_path / "log.json", content))


def test_rows_of_parquet_are_counted(tmp_path):
    path = write(tmp_path / "log.parquet", [*ROWS, {"limit": 10, "episode": 3, "cost": float("nan")}])
    with pytest.raises(ValueError, match=r"log.parquet: row 4: cost must be .*, got nothing, or NaN"):
        read_logged_costs(path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "log.txt").write_text("episode,cost\n0,1\n")
    (tmp_path / "log.json").write_text("{")
    (tmp_path / "log.parquet").write_text("nothing")
    for name, message in (
        ("log.txt", r"must be a \.csv, \.parquet or \.json file"),
        ("log.json", "is not complete JSON"),
        ("log.parquet", "parquet"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            read_logged_costs(tmp_path / name)
    for name in ("loh.json", "log.csv", "lag.parquet"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such file; did you mean .*log"):
            read_logged_costs(tmp_path / name)
    (tmp_path / "log.csv").write_text("episode,cost\nMärz,1\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"log\.csv: is not text in .* here, save it as UTF-8"):
        read_logged_costs(tmp_path / "log.csv")
