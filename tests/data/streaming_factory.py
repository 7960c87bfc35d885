"""Datasets in files that are read in parts, good ones and spoiled ones."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from data_factory import make_columns

from spi_diffusers.data import parquet_rows
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.units import Units

BALL = get_task("ballcircle")


LENGTHS = (7, 1, 12, 5, 9, 3, 16)  # 53 rows


CARD = f"---\nconfigs:\n- config_name: {BALL.name}\n  data_files: {BALL.name}/train-*.parquet\n---\n"


def split_files(folder, table, files=3, row_group_size=7):
    """Replace the rows of a folder's config by several files with small row groups, and no statistics."""
    config = folder / BALL.name
    shutil.rmtree(config, ignore_errors=True)
    config.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    edges = np.linspace(0, len(table), files + 1).astype(int)
    for number in range(files):
        part = table.slice(edges[number], edges[number + 1] - edges[number])
        path = config / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(part, path, row_group_size=row_group_size, write_page_checksum=True)
    return folder


def assert_same_summary(stream, data):
    assert stream.sha256 == data.sha256
    assert (len(stream), stream.num_episodes) == (len(data), data.num_episodes)
    assert (stream.observation_dim, stream.action_dim) == (data.observation_dim, data.action_dim)
    observation = data.transitions.observation.double()
    expected = (observation.mean(0), observation.std(0, correction=0))
    torch.testing.assert_close(stream.summary.moments["observation"], expected, atol=1e-12, rtol=0)
    assert Units.of(stream) == Units.of(data)
    for name in ("episode_index", "start", "length", "terminated"):
        assert torch.equal(getattr(stream.episodes, name), getattr(data.episodes, name)), name
    for name in ("return_", "cost_return"):
        torch.testing.assert_close(getattr(stream.episodes, name), getattr(data.episodes, name))


def spoiled(what):
    """Columns with one thing wrong, late in the data."""
    columns = make_columns(lengths=LENGTHS, terminated=(1, 4))
    index = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    columns |= {"episode_index": index, "frame_index": frame}
    if what == "nan":
        columns["next_observation"][41, 3] = np.nan
    elif what == "negative cost":
        columns["cost"][30] = -1
    elif what == "wild action":
        columns["action"][50, 1] = 1.5
    elif what == "flag":
        columns["terminated"] = columns["terminated"].astype(np.float32)
        columns["terminated"][33] = 0.5
    elif what == "no end":
        columns["truncated"][-1] = False
    elif what == "no ends":
        columns["truncated"][:] = columns["terminated"][:] = False
        columns |= {"episode_index": np.zeros(53, int), "frame_index": np.arange(53)}
    elif what == "index":
        columns["episode_index"][22] += 1
    elif what == "index used twice":
        columns["episode_index"][columns["episode_index"] == 5] = 0
    elif what == "frame":
        columns["frame_index"][29] += 1
    elif what == "text":
        columns["reward"] = columns["reward"].astype(str)
    elif what == "dimensions":
        columns["action"] = columns["action"][:, :1]
    elif what == "observations differ":
        columns["next_observation"] = columns["next_observation"][:, :5]
    return columns


def columns_to_arrow(columns):
    return pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            if values.ndim == 2
            else pa.array(values)
            for name, values in columns.items()
        }
    )


def open_stream_rows(folder):
    files = sorted((folder / BALL.name).glob("train-*.parquet"))
    return parquet_rows.ParquetRows([str(file) for file in files], source="here")
