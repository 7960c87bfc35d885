"""Loading a policy from the Hub, by fresh client processes against a real (loopback) server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_hub import COMMIT, DatasetHandler, DatasetHub
from pipeline_factory import make_pipeline

# One process answers a list of calls: importing torch and diffusers takes seconds.
CLIENT = """
import json, sys, torch
from spi_diffusers import SPIPolicyPipeline
answers = []
for name, options in json.loads(sys.argv[1]):
    try:
        pipe = SPIPolicyPipeline.from_pretrained(name, **options)
        seed = torch.Generator().manual_seed(0)
        answers.append(pipe(torch.zeros(3), cost_limit=5.0, generator=seed).candidates.tolist())
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
print("ANSWERS" + json.dumps(answers))
"""


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


def ask(calls, environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    words = [sys.executable, "-c", CLIENT, json.dumps(calls)]
    run = subprocess.run(words, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert "ANSWERS" in run.stdout, run.stderr[-3000:]
    return json.loads(run.stdout.split("ANSWERS")[1])


def test_a_policy_from_the_hub_acts_like_the_local_one_and_needs_only_weights_and_configs(files, tmp_path):
    folder, contents = files
    with ModelHub({"org/spi": contents}) as hub:
        environment = hub.environment(tmp_path)
        from_hub, local = ask([("org/spi", {"revision": COMMIT}), (str(folder), {})], environment)
    assert from_hub == local
    fetched = {path.name for path in Path(tmp_path).rglob("snapshots/*/**/*") if path.is_file()}
    assert {Path(name).suffix for name in fetched} == {".json", ".safetensors"}
    # The server is gone; the cache serves.
    offline = ("org/spi", {"revision": COMMIT, "local_files_only": True})
    assert ask([offline], environment) == [from_hub]


def test_what_is_wrong_on_the_hub_is_named(files, tmp_path):
    _, contents = files
    broken = {name: data for name, data in contents.items() if name != "reward_critic/config.json"}
    with ModelHub({"org/spi": contents, "org/broken": broken}) as hub:
        calls = [("org/none", {}), ("org/spi", {"revision": "v9"}), ("org/broken", {})]
        none, revision, missing = ask(calls, hub.environment(tmp_path))
    assert "org/none" in none
    assert "RevisionNotFound" in revision
    assert "reward_critic" in missing
    assert "config.json is missing" in missing
