"""Tables as robots log them, in files of several formats."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from data_factory import make_columns

from spi_diffusers.data.roles import ColumnNames

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
