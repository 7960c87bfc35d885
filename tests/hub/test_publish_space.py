"""The page as a Space: what is published, by the real client against a real (loopback) server, is an app."""

import os
import subprocess
import sys

import pytest
import yaml
from command_line import fails
from hub_server import TOKEN
from policy_factory import make_run

from spi_diffusers.cli import main
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.spaces.publish import space_files

#: Loads the policy that is there by the code that is there, and says what it found.
PAGE_WITHOUT_GRADIO = """
from spi_diffusers.spaces.episode import PolicyOnShow, policies_on_show

def serve(policies):
    shown = policies_on_show(policies)
    print(shown, *(PolicyOnShow.open(place).limits for place in shown.values()))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ball")


@pytest.fixture(scope="module")
def space(run):
    """The files of a Space with one policy, by their paths."""
    content = space_files({"ballcircle": read_policy_files(run)}, "org/try-ball")
    return {path: data if isinstance(data, bytes) else data.read_bytes() for path, data in content.items()}


@pytest.mark.slow  # imports take longer than all the rest
def test_the_space_starts_the_page_with_the_policy(space, tmp_path):
    for path, data in space.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    page = tmp_path / "spi_diffusers" / "spaces" / "page.py"
    page.write_text(PAGE_WITHOUT_GRADIO)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "app.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "{'ballcircle': 'policies/0-ballcircle'} (10.0, 20.0, 40.0)\n", done.stderr


def test_it_says_what_the_hub_must_install_and_start(space):
    _, header, text = space["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(header)
    assert (card["sdk"], card["app_file"], card["python_version"]) == ("gradio", "app.py", "3.11")
    assert (card["title"], card["license"]) == ("try-ball", "apache-2.0")
    assert "* ballcircle\n" in text
    lines = space["requirements.txt"].decode().splitlines()
    names = {line.split(">")[0].split("=")[0] for line in lines}
    assert {"torch", "diffusers", "pybullet", "bullet-safety-gym", "imageio-ffmpeg"} <= names
    assert not names & {"pytest", "ruff", "mujoco", "gradio"}
    assert not any(";" in line for line in lines)


def test_only_what_the_page_needs_is_in_it(space):
    assert {path.split("/")[0] for path in space} == {
        *("app.py", "README.md", "requirements.txt", "policies", "spi_diffusers")
    }
    ours = [path for path in space if path.startswith("policies/")]
    assert {"policies/0-ballcircle/model_index.json", "policies/0-ballcircle/results.json"} <= set(ours)
    assert not any(path.endswith((".parquet", ".pyc", ".bin", ".mp4", ".png")) for path in space)
    assert sum(map(len, space.values())) < 4_000_000


def test_it_is_published_by_one_commit_and_old_policies_go(hub, space, run, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = ["publish", str(run), "--space", "org/try-ball"]
    assert main([*words, "--quiet"]) == 0
    assert f"{hub.url}/spaces/org/try-ball/commit/" in capsys.readouterr().out
    assert hub.store.get("spaces", "org/try-ball").files == space
    more = {"policies/1-old/model_index.json": b"{}", "LICENSE": b"x"}
    hub.store.put("spaces", "org/try-ball", {**space, **more})
    assert main([*words, "--dry-run"]) == 0
    assert "1 deleted" in capsys.readouterr().out
    assert main([*words, "--quiet"]) == 0
    assert hub.store.get("spaces", "org/try-ball").files == {**space, "LICENSE": b"x"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["org/spi"], "--space names the repository, so 'org/spi' is one too many"),
        (["--output", "x"], "--output does not go with --space"),
        (["--all"], "--space does not go with --all"),
    ],
)
def test_what_does_not_go_together_is_one_line(capsys, run, words, message):
    assert message in fails(capsys, "publish", str(run), "--space", "org/try", *words)


def test_a_policy_that_is_not_there_is_refused(capsys):
    assert "no such folder" in fails(capsys, "publish", "no-folder", "--space", "org/try")
