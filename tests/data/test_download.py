"""Downloads from a real (loopback) server that fails on purpose."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from dataset_hub import COMMIT, blob_id, point_client_at
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
def hub(server, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
    point_client_at(monkeypatch, server.url)
    monkeypatch.setattr("spi_diffusers.data.network.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("spi_diffusers.data.download.CHUNK", CHUNK)  # what is resumed at is a multiple of it
    server.is_lfs = True
    server.reset()
    return server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spi-diffusers" / "dsrl" / "files"


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_the_hub_tells_size_commit_and_checksum(hub):
    found = find_dsrl_files([BALL])[BALL.name]
    assert (found.path, found.size, found.commit) == (BALL.dataset_file, len(CONTENT), COMMIT)
    assert found.digest == found.sha256 == sha256(CONTENT)


def test_download_and_a_second_run_that_downloads_nothing(hub, folder):
    path = download_dsrl_file(BALL)
    assert path == folder / sha256(CONTENT) / BALL.dataset_file
    assert path.read_bytes() == CONTENT
    assert hub.served == [0]
    assert download_dsrl_file(BALL) == path
    assert hub.served == [0]
    assert files(folder) == [BALL.dataset_file]


def test_a_file_that_git_itself_keeps_is_verified_by_its_blob_id(hub, folder):
    hub.is_lfs = False
    path = download_dsrl_file(BALL)
    assert path == folder / blob_id(CONTENT) / BALL.dataset_file
    path.unlink()
    hub.reset("corrupt@7", "corrupt@7")
    with pytest.raises(DatasetError, match="arrives damaged"):
        download_dsrl_file(BALL)


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
def test_faults_that_pass_are_overcome_and_nothing_is_fetched_twice(hub, folder, faults, starts):
    hub.reset(*faults)
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == starts
    assert files(folder) == [BALL.dataset_file]


def test_corrupted_content_is_noticed_and_fetched_again(hub, folder, caplog):
    hub.reset("corrupt@123456")
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == [0, 0]
    assert "arrived damaged (wrong checksum)" in caplog.text


def test_content_that_stays_wrong_is_an_error_and_leaves_no_file(hub, folder):
    hub.reset("corrupt@1", "corrupt@2")
    with pytest.raises(DatasetError, match=rf"{BALL.dataset_file} arrives damaged: twice.*{sha256(CONTENT)}"):
        download_dsrl_file(BALL)
    assert hub.served == [0, 0]
    assert files(folder) == []
    hub.reset(sha256={BALL.dataset_file: "0" * 64})  # right bytes, other checksum at the Hub
    with pytest.raises(DatasetError, match="arrives damaged"):
        download_dsrl_file(BALL)


def test_a_download_that_fails_for_good_keeps_what_arrived_and_a_later_one_goes_on(hub, folder):
    hub.reset("reset@150000", *["status@500"] * 9)
    with pytest.raises(
        DatasetError, match=r"cannot be downloaded to .*kept; the next try goes on there"
    ) as error:
        download_dsrl_file(BALL)
    assert "500" in str(error.value)
    assert hub.served == [0, 150_000, 150_000, 150_000]
    assert files(folder) == [f"{BALL.dataset_file}.part"]
    hub.reset()
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == [150_000]


def test_a_damaged_start_from_before_is_noticed(hub, folder):
    part = folder / sha256(CONTENT) / f"{BALL.dataset_file}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == [1000, 0]
    part.write_bytes(bytes(len(CONTENT) + 1))  # longer than the file
    part.with_suffix("").unlink()
    assert download_dsrl_file(BALL).read_bytes() == CONTENT


def test_a_file_that_was_damaged_on_disk_is_fetched_again(hub, folder):
    path = download_dsrl_file(BALL)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == [0, 0]


def test_a_status_that_will_not_change_is_not_tried_again(hub, folder):
    hub.reset("status@404")
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download_dsrl_file(BALL)
    assert hub.served == [0]


@pytest.mark.parametrize(
    ("statuses", "requests"),
    [([503], 3), ([429, 500], 4), ([0, 500], 4), ([503, 503, 0, 429], 6)],
    ids=str,
)
def test_a_busy_hub_is_asked_again(hub, folder, caplog, statuses, requests):
    hub.reset(api_statuses=statuses)
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert "trying again" in caplog.text
    assert hub.asked == requests


def test_a_hub_that_stays_busy_is_an_error(hub, folder):
    hub.reset(api_statuses=[503] * 9)
    with pytest.raises(DatasetError, match=rf"{BALL.dataset_file} of {BALL.name} cannot .*503"):
        download_dsrl_file(BALL)
    assert hub.asked == 4


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_asked_again(hub, folder, status):
    hub.reset(api_statuses=[status] * 9)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download_dsrl_file(BALL)
    assert hub.asked == 1


@pytest.mark.parametrize(
    ("task", "revision", "message"),
    [
        (CAR, None, rf"{CAR.dataset_file} of OfflineCarCircle-v0 cannot .*no such file in revision main"),
        (BALL, "v9", "RevisionNotFound"),
    ],
    ids=["file", "revision"],
)
def test_what_the_hub_does_not_have(hub, folder, task, revision, message):
    with pytest.raises(DatasetError, match=message):
        download_dsrl_file(task, revision=revision)
    assert hub.served == []


def test_full_disk(hub, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DatasetError, match="0 MB are needed, and 0 MB are free"):
        download_dsrl_file(BALL)
    assert hub.served == []


def test_without_a_connection_an_earlier_download_serves(hub, folder, monkeypatch, caplog):
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(DatasetError, match="cannot be downloaded"):
            download_dsrl_file(BALL)
    assert "trying again" not in caplog.text  # it would take seconds and change nothing
    path = download_dsrl_file(BALL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download_dsrl_file(BALL) == path
    assert "was fetched before" in caplog.text
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download_dsrl_file(BALL, revision="main")  # nothing here tells which commit that is now
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DatasetError, match="is damaged, and the Hub cannot be reached"):
        download_dsrl_file(BALL)


def _get(url, assets):
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_client_at(monkeypatch, url)
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(assets))
        monkeypatch.setattr("spi_diffusers.data.download.CHUNK", CHUNK)
        download_dsrl_file(BALL)


def test_a_killed_download_goes_on_in_the_next_process(hub, folder, tmp_path):
    hub.reset("slow@2000")  # takes two seconds
    process = multiprocessing.get_context("spawn").Process(target=_get, args=(hub.url, tmp_path))
    process.start()
    deadline = time.monotonic() + 20
    part = folder / sha256(CONTENT) / f"{BALL.dataset_file}.part"
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    arrived = part.stat().st_size
    assert 0 < arrived < len(CONTENT)
    assert download_dsrl_file(BALL).read_bytes() == CONTENT
    assert hub.served == [0, arrived]
