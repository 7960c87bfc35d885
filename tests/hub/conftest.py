import shutil
import time

import pytest
from dataset_pushes import CAR_RUN, write
from hub_server import HubServer
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fresh Hub that clients in this process talk to, with a cache of its own; their pauses are short."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    disable_progress_bars()
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
    enable_progress_bars()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "set"
    write(folder)
    return write(folder, CAR_RUN)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")
