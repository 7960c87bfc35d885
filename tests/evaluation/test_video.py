import os
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from ball_circle_policies import BallCircler

from spi_diffusers.envs import SimulatorNotInstalledError
from spi_diffusers.evaluation import video
from spi_diffusers.evaluation.rollouts import rollout
from spi_diffusers.evaluation.video import PANEL_HEIGHT, PICTURE_SIZE, record_replay


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "replay.mp4"
    # A margin below 0 lets the budget be overspent.
    policy = BallCircler(margin=-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "MAX_FRAMES", 10)
        return record_replay(policy, "ballcircle", path, cost_limit=10, seed=3, progress=False)


def test_it_is_the_episode_of_the_rollout(replay):
    played = rollout(BallCircler(margin=-3), "ballcircle", episodes=1, seed=3, cost_limit=10, progress=False)

    assert replay.return_ == pytest.approx(played.returns[0], abs=1e-9)
    assert replay.cost_return == played.cost_returns[0] > 10
    assert replay.length == 200
    assert os.listdir(replay.path.parent) == ["replay.mp4"]


def test_the_simulator_can_be_chosen(tmp_path):
    with pytest.raises(SimulatorNotInstalledError, match="cannot be made by dsrl"):
        record_replay(BallCircler(), "ballcircle", tmp_path / "r.mp4", cost_limit=10, simulator="dsrl")
    assert not os.listdir(tmp_path)


def test_the_bar_grows_and_turns_red_beyond_the_limit(replay):
    with imageio.get_reader(replay.path) as reader:
        pictures = [np.asarray(picture, dtype=int) for picture in reader]
        metadata = reader.get_meta_data()

    assert len(pictures) == 11
    assert pictures[0].shape == (PICTURE_SIZE[0] + PANEL_HEIGHT, PICTURE_SIZE[1], 3)
    assert metadata["codec"] == "h264"
    assert metadata["pix_fmt"].startswith("yuv420p")
    bars = [picture[PICTURE_SIZE[0] + 50, 24:-24] for picture in pictures]  # a line through the bar
    red = [int(((bar[:, 0] > 160) & (bar[:, 1] < 110)).sum()) for bar in bars]
    green = [int(((bar[:, 1] > 130) & (bar[:, 0] < 110)).sum()) for bar in bars]
    assert red[0] == green[0] == 0, "no cost yet"
    assert max(green) > 20, "cost within the limit"
    assert red[-1] > 300, "limit at 70% of the bar, overspent"
    assert green[-1] == 0
    assert np.abs(pictures[0][:300] - pictures[5][:300]).mean() > 0.2, "the ball moves"


@pytest.mark.parametrize("name", ["10:30.mp4", "-i.mp4", "a.zip/%d [v2].mp4", "file:'ü?.MP4"])
def test_any_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    replay = record_replay(BallCircler(), "ballcircle", name, cost_limit=10, progress=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / replay.path]


def test_a_policy_that_fails_leaves_nothing(tmp_path):
    class Failing(BallCircler):
        def act(self, *args):
            raise FloatingPointError("too large")

    with pytest.raises(FloatingPointError, match="too large"):
        record_replay(Failing(), "ballcircle", tmp_path / "x.mp4", cost_limit=10, progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_limit": -1}, "a cost limit must be"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"path": "replay.gif"}, "a replay is an .mp4 file, got .*replay.gif"),
    ],
)
def test_bad_arguments(tmp_path, changes, message):
    arguments = {"path": "replay.mp4", "cost_limit": 10, **changes}
    with pytest.raises(ValueError, match=message):
        record_replay(
            BallCircler(), "ballcircle", tmp_path / arguments.pop("path"), progress=False, **arguments
        )
    assert os.listdir(tmp_path) == []


def test_no_space_left_keeps_the_old_video(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    path = tmp_path / "replay.mp4"
    path.write_bytes(b"old")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from ball_circle_policies import BallCircler\n"
        "from spi_diffusers.evaluation import video\n"
        "video.MAX_FRAMES = 4\n"
        f"video.record_replay(BallCircler(), 'ballcircle', {str(path)!r}, cost_limit=10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", str(Path(__file__).parent), os.getcwd()])},
    )
    assert done.returncode != 0
    assert "OSError: [Errno" in done.stderr
    assert f"cannot write {path}: ffmpeg failed: " in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["replay.mp4"]
