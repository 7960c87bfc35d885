"""Downloads from a real (loopback) server that fails on purpose."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from dataset_hub import COMMIT, blob_id
from faulty_hub import FaultyHub, sha256

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.download import download_dsrl_file, find_dsrl_files
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, get_task

BALL, CAR = get_task("ballcircle"), get_task("carcircle")
CONTENT = np.random.default_rng(0).bytes(400_000)
CHUNK = 10_000


@pytest.fixture(scope="module")
def server():
    with FaultyHub({DSRL_DATASET_REPO: {BALL.dataset_file: CONTENT}}) as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    # The client writes in pieces of this size, 10 MB by default: what it resumes at is a multiple of it.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    server.is_lfs = True
    server.reset()
    return server


def get(hub, folder, task=BALL, **options):
    return download_dsrl_file(task, folder=folder, endpoint=hub.url, token=False, wait=0.01, **options)


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_the_hub_tells_size_commit_and_checksum(hub):
    found = find_dsrl_files([BALL], endpoint=hub.url, token=False)[BALL.name]
    assert (found.path, found.size, found.commit) == (BALL.dataset_file, len(CONTENT), COMMIT)
    assert found.digest == found.sha256 == sha256(CONTENT)


def test_download_and_a_second_run_that_downloads_nothing(hub, tmp_path):
    path = get(hub, tmp_path)
    assert path == tmp_path / sha256(CONTENT) / BALL.dataset_file
    assert path.read_bytes() == CONTENT
    assert hub.served == [0]
    assert get(hub, tmp_path) == path
    assert hub.served == [0]
    assert files(tmp_path) == [BALL.dataset_file]


def test_a_file_that_git_itself_keeps_is_verified_by_its_blob_id(hub, tmp_path):
    hub.is_lfs = False
    assert get(hub, tmp_path) == tmp_path / blob_id(CONTENT) / BALL.dataset_file
    hub.reset("corrupt@7", "corrupt@7")
    with pytest.raises(DatasetError, match="arrives damaged"):
        get(hub, tmp_path / "other")


@pytest.mark.parametrize(
    ("faults", "starts"),
    [
        (["drop@100000"], [0, 100_000]),
        (["drop@100000", "drop@50000"], [0, 100_000, 150_000]),
        (["reset@100000"], [0, 100_000]),
        (["short@100000", "short@1000"], [0, 100_000, 101_000]),
        (["stall@100000"], [0, 100_000]),
        (["reset@100000", "norange"], [0, 100_000]),
        (["status@500", "status@503"], [0, 0, 0]),
        (["reset@100000", "status@502"], [0, 100_000, 100_000]),
        (["slow@40000"], [0]),
        (["reset@50000"] * 6, [0, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000]),
    ],
    ids=lambda value: "-".join(value) if value and isinstance(value[0], str) else "",
)
def test_faults_that_pass_are_overcome_and_nothing_is_fetched_twice(hub, tmp_path, faults, starts):
    hub.reset(*faults)
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == starts
    assert files(tmp_path) == [BALL.dataset_file]


def test_corrupted_content_is_noticed_and_fetched_again(hub, tmp_path, caplog):
    hub.reset("corrupt@123456")
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == [0, 0]
    assert "arrived damaged (wrong checksum)" in caplog.text


def test_content_that_stays_wrong_is_an_error_and_leaves_no_file(hub, tmp_path):
    hub.reset("corrupt@1", "corrupt@2")
    with pytest.raises(DatasetError, match=rf"{BALL.dataset_file} arrives damaged: twice.*{sha256(CONTENT)}"):
        get(hub, tmp_path)
    assert hub.served == [0, 0]
    assert files(tmp_path) == []
    hub.reset(sha256={BALL.dataset_file: "0" * 64})  # right bytes, other checksum at the Hub
    with pytest.raises(DatasetError, match="arrives damaged"):
        get(hub, tmp_path)


def test_a_download_that_fails_for_good_keeps_what_arrived_and_a_later_one_goes_on(hub, tmp_path):
    hub.reset("reset@150000", *["status@500"] * 9)
    with pytest.raises(
        DatasetError, match=r"cannot be downloaded to .*kept; the next try goes on there"
    ) as error:
        get(hub, tmp_path)
    assert "500" in str(error.value)
    assert hub.served == [0, 150_000, 150_000, 150_000]
    assert files(tmp_path) == [f"{BALL.dataset_file}.part"]
    hub.reset()
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == [150_000]


def test_a_damaged_start_from_before_is_noticed(hub, tmp_path):
    part = tmp_path / sha256(CONTENT) / f"{BALL.dataset_file}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(1000))
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == [1000, 0]
    part.write_bytes(bytes(len(CONTENT) + 1))  # longer than the file
    part.with_suffix("").unlink()
    assert get(hub, tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_damaged_on_disk_is_fetched_again(hub, tmp_path):
    path = get(hub, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == [0, 0]


def test_a_status_that_will_not_change_is_not_tried_again(hub, tmp_path):
    hub.reset("status@404")
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        get(hub, tmp_path)
    assert hub.served == [0]


@pytest.mark.parametrize(
    ("statuses", "requests"),
    [([503], 3), ([429, 500], 4), ([0, 500], 4), ([503, 503, 0, 429], 6)],
    ids=str,
)
def test_a_busy_hub_is_asked_again(hub, tmp_path, caplog, statuses, requests):
    hub.reset(api_statuses=statuses)
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert "trying again" in caplog.text
    assert hub.asked == requests


def test_a_hub_that_stays_busy_is_an_error(hub, tmp_path):
    hub.reset(api_statuses=[503] * 9)
    with pytest.raises(DatasetError, match=rf"{BALL.dataset_file} of {BALL.name} cannot .*503"):
        get(hub, tmp_path)
    assert hub.asked == 4


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_asked_again(hub, tmp_path, status):
    hub.reset(api_statuses=[status] * 9)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        get(hub, tmp_path)
    assert hub.asked == 1


@pytest.mark.parametrize(
    ("task", "revision", "message"),
    [
        (CAR, None, rf"{CAR.dataset_file} of OfflineCarCircle-v0 cannot .*no such file in revision main"),
        (BALL, "v9", "RevisionNotFoundError"),
    ],
    ids=["file", "revision"],
)
def test_what_the_hub_does_not_have(hub, tmp_path, task, revision, message):
    with pytest.raises(DatasetError, match=message):
        get(hub, tmp_path, task, revision=revision)
    assert hub.served == []


def test_full_disk(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DatasetError, match="0 MB are needed, and 0 MB are free"):
        get(hub, tmp_path)
    assert hub.served == []


def test_without_a_connection_an_earlier_download_serves(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        get(hub, tmp_path)
    assert "trying again" not in caplog.text  # it would take seconds and change nothing
    monkeypatch.undo()
    path = get(hub, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get(hub, tmp_path) == path
    assert "was fetched before" in caplog.text
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        get(hub, tmp_path, revision="main")  # nothing here tells which commit that is now
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DatasetError, match="is damaged, and the Hub cannot be reached"):
        get(hub, tmp_path)


def _get(url, folder):
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    download_dsrl_file(BALL, folder=folder, endpoint=url, token=False, wait=0.01)


def test_a_killed_download_goes_on_in_the_next_process(hub, tmp_path):
    hub.reset("slow@2000")  # takes two seconds
    process = multiprocessing.get_context("spawn").Process(target=_get, args=(hub.url, tmp_path))
    process.start()
    deadline = time.monotonic() + 20
    part = tmp_path / sha256(CONTENT) / f"{BALL.dataset_file}.part"
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    arrived = part.stat().st_size
    assert 0 < arrived < len(CONTENT)
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.served == [0, arrived]
