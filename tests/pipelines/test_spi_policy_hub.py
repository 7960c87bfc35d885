"""Loading a policy from the Hub, against a real (loopback) server."""

from pathlib import Path

import pytest
import torch
from dataset_hub import COMMIT, DatasetHandler, DatasetHub, point_client_at
from pipeline_factory import make_pipeline

from spi_diffusers import SPIPolicyPipeline
from spi_diffusers.files import PolicyError


class ModelHandler(DatasetHandler):
    """The same server for model repositories, whose addresses have another prefix."""

    def answer(self):
        if self.path.startswith("/api/models/"):
            self.path = self.path.replace("/api/models/", "/api/datasets/", 1)
        elif not self.path.startswith("/api/"):
            self.path = f"/datasets{self.path}"
        super().answer()


class ModelHub(DatasetHub):
    handler = ModelHandler


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_pipeline().save_pretrained(str(folder))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # What must never be fetched: a pickle, and code.
    return folder, found | {"noise_model/diffusion_pytorch_model.bin": b"pickle", "pipeline.py": b"raise 1"}


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Makes the client in this process talk to a Hub, with a cache of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def connect(hub):
        point_client_at(monkeypatch, hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)  # diffusers asks this one

    return connect


def candidates(name, **options):
    seed = torch.Generator().manual_seed(0)
    pipe = SPIPolicyPipeline.from_pretrained(str(name), **options)
    return pipe(torch.zeros(3), cost_limit=5.0, generator=seed).candidates.tolist()


def test_a_policy_from_the_hub_acts_like_the_local_one_and_needs_only_weights_and_configs(
    files, client, tmp_path
):
    folder, contents = files
    with ModelHub({"org/spi": contents}) as hub:
        client(hub)
        assert candidates("org/spi", revision=COMMIT) == candidates(folder)
    fetched = {path.name for path in tmp_path.rglob("snapshots/*/**/*") if path.is_file()}
    assert {Path(name).suffix for name in fetched} == {".json", ".safetensors"}
    # The server is gone; the cache serves.
    assert candidates("org/spi", revision=COMMIT, local_files_only=True) == candidates(folder)


def test_what_is_wrong_on_the_hub_is_named(files, client):
    _, contents = files
    broken = {name: data for name, data in contents.items() if name != "reward_critic/config.json"}
    with ModelHub({"org/spi": contents, "org/broken": broken}) as hub:
        client(hub)
        with pytest.raises(PolicyError, match="org/none"):
            candidates("org/none")
        with pytest.raises(PolicyError, match="RevisionNotFound"):
            candidates("org/spi", revision="v9")
        with pytest.raises(FileNotFoundError, match=r"reward_critic.*config\.json is missing"):
            candidates("org/broken")
