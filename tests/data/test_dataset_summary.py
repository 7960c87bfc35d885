"""What is known of a dataset without its rows: from the files beside them, or by one pass."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from data_factory import make_dataset
from streaming_factory import (
    BALL,
    LENGTHS,
    assert_same_summary,
    columns_to_arrow,
    open_stream_rows,
    split_files,
    spoiled,
)

from spi_diffusers.data import streaming
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.summary import scanned_summary
from spi_diffusers.data.writing import write_parquet_dataset

pytestmark = pytest.mark.usefixtures("small_batches")


def test_statistics_beside_the_rows_are_used_if_the_checksums_are_right(untouched, data, monkeypatch):
    monkeypatch.setattr(streaming, "scanned_summary", None)  # not called
    stream = open_stream(untouched, BALL)
    assert_same_summary(stream, data)
    # Bit for bit what in-memory training normalises with.
    observation = data.transitions.observation.double()
    mean, std = stream.summary.moments["observation"]
    assert torch.equal(mean, observation.mean(0))
    assert torch.equal(std, observation.std(0, correction=0))
    assert repr(stream).splitlines()[1:] == repr(data).splitlines()[1:]
    assert repr(stream).startswith(f"StreamedDataset: {untouched} (OfflineBallCircle-v0)\n")


def test_without_them_one_pass_finds_the_same(split, data, scans):
    stream = open_stream(split, BALL, progress=False)
    assert len(scans) == 1
    assert_same_summary(stream, data)


def change_stats(folder, **changes):
    path = folder / BALL.name / "stats.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "what",
    [
        *("rows", "episodes", "broken", "count", "files", "dimensions", "no episodes"),
        *("no digest", "empty digest", "negative std", "no std of costs", "infinite mean reward"),
    ],
)
def test_statistics_that_do_not_belong_to_the_rows_are_not_used(folder, data, caplog, scans, what):
    config = folder / BALL.name
    if what == "rows":
        other = make_dataset(task=BALL, lengths=LENGTHS, terminated=(1, 4), seed=1)
        shutil.copy(
            write_parquet_dataset(other, folder.parent / "other")
            / BALL.name
            / "train-00000-of-00001.parquet",
            config,
        )
        data = other
    elif what == "episodes":
        pq.write_table(pq.read_table(config / "episodes.parquet"), config / "episodes.parquet", version="1.0")
    elif what == "no episodes":
        (config / "episodes.parquet").unlink()
    elif what == "broken":
        (config / "stats.json").write_text("{")
    elif what == "count":
        change_stats(folder, num_transitions=52)
    elif what == "files":
        change_stats(folder, files=[])
    elif what == "dimensions":
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["observation"] = columns["action"]
        change_stats(folder, columns=columns)
    elif what == "no digest":
        change_stats(folder, sha256=None)
    elif what == "empty digest":
        change_stats(folder, sha256="")
    elif what == "negative std":
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["observation"]["std"][0] = -1.0
        change_stats(folder, columns=columns)
    elif what in ("no std of costs", "infinite mean reward"):
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["cost" if "costs" in what else "reward"] |= (
            {"std": None} if "costs" in what else {"mean": 1e400}
        )
        change_stats(folder, columns=columns)
    stream = open_stream(folder, BALL, progress=False)
    assert len(scans) == 1
    assert "stats.json is not used: " in caplog.text
    assert_same_summary(stream, data)


SPOILED = [
    *(
        "nan",
        "negative cost",
        "wild action",
        "flag",
        "no end",
        "no ends",
        "index",
        "index used twice",
        "frame",
    ),
    *("text", "dimensions", "observations differ"),
]


@pytest.mark.parametrize("what", SPOILED)
def test_the_one_pass_refuses_what_loading_refuses_in_the_same_words(tmp_path, what):
    split_files(tmp_path, columns_to_arrow(spoiled(what)))
    with pytest.raises(DatasetError) as in_memory:
        load_transitions(tmp_path, BALL)
    with pytest.raises(DatasetError) as streamed:
        open_stream(tmp_path, BALL, progress=False)
    # Counts are of the part that was read.
    words = [str(error.value).replace("has 1 rows", "has 1 values") for error in (in_memory, streamed)]
    if what == "text":  # there a file is at fault, here the whole
        words = [text.partition("column")[2] for text in words]
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action": {"min": [-1, -1], "max": [1, 1.2]}},
            r"'action' reaches from -1 to 1\.2, outside \[-1, 1\]",
        ),
        ({"cost": {"min": -2.0, "max": 1.0}}, "'cost' has the negative value -2"),
        ({"reward": {"min": float("nan"), "max": 1.0}}, "'reward' has values that are not finite"),
    ],
)
def test_extremes_in_the_statistics_tell_of_bad_values_before_training(folder, scans, changes, message):
    columns = json.loads((folder / BALL.name / "stats.json").read_text())["columns"]
    changed = {name: columns[name] | change for name, change in changes.items()}
    change_stats(folder, columns=columns | changed)
    with pytest.raises(DatasetError, match=message):
        open_stream(folder, BALL)
    if "action" in changes:
        open_stream(folder, BALL, clip_actions=True)
    assert not scans


def test_the_scan_reports_its_progress(split, capsys):
    scanned_summary(open_stream_rows(split), BALL, progress=True)
    assert "reading once" in capsys.readouterr().err
