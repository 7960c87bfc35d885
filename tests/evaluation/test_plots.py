import json

import numpy as np
import pytest
from ball_circle_policies import BallCircler
from evaluation_factory import make_entry
from matplotlib.figure import Figure
from PIL import Image

from spi_diffusers.evaluation.plots import (
    plot_cost_return,
    plot_limits,
    plot_training,
)
from spi_diffusers.evaluation.rollouts import rollout
from spi_diffusers.evaluation.summary import BehaviorRow


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn: what they hold is easier to read from them than from pixels."""
    drawn = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), original(self, *args, **kwargs))
    )
    return drawn


def _is_drawn(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).std() > 5 and min(picture.size) > 400


ENTRIES = [
    make_entry([600.0, 620.0], [8.0, 10.0], cost_limit=10),
    make_entry([650.0, 660.0], [15.0, 19.0], cost_limit=20),
    *(
        make_entry([690.0, 700.0], [70.0, 74.0], cost_limit=limit, extraction="reward", feedback=False)
        for limit in (10, 20)
    ),
]
BEHAVIOR = [
    BehaviorRow("OfflineBallCircle-v0", limit, 9, 480.0, 9.0, 30.0, 9.0, 0.5, 3.0, 0.1, best, cost, 0.7)
    for limit, best, cost in ((10.0, 679.0, 9.0), (20.0, None, None), (40.0, 750.0, 39.0))
]


def _write_log(path, **metrics):
    with path.open("w") as file:
        for step in range(10, 300, 10):
            file.write(
                json.dumps({"step": step, **{name: value / step for name, value in metrics.items()}}) + "\n"
            )
        file.write('{"step": 30')  # a live run
    return path


def test_training_curves(tmp_path, figures):
    metrics = {
        "critic/reward_loss": 9.0,
        "critic/safety_loss": 5.0,
        "critic/reward_value": 7.0,
        "policy/noise_loss": 3.0,
        "lr": 1.0,
        "updates_per_second": 400.0,
    }
    log = _write_log(tmp_path / "metrics.jsonl", **metrics)
    path = tmp_path / "plots" / "training.png"

    assert plot_training(log, path) is figures[0]
    assert _is_drawn(path)
    panels = {axes.get_title(): axes for axes in figures[0].axes if axes.get_visible()}
    assert list(panels) == [
        "Noise loss (Eq. 9)",
        "Critic losses (Eq. 10, 11)",
        "Critic values",
        "Speed",
        "Learning rate",
    ]
    raw = panels["Noise loss (Eq. 9)"].lines[0]
    np.testing.assert_allclose(raw.get_ydata(), 3.0 / np.arange(10, 300, 10))
    assert panels["Critic losses (Eq. 10, 11)"].get_yscale() == "log"


def test_training_log_without_anything_to_draw(tmp_path):
    log = _write_log(tmp_path / "metrics.jsonl", something=1.0)
    with pytest.raises(ValueError, match=r"holds none of the metrics that are drawn, only \['something'\]"):
        plot_training(log, tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()


def test_limits_show_means_spread_and_the_limit(tmp_path, figures):
    plot_limits(ENTRIES, tmp_path / "limits.png", BEHAVIOR)
    assert _is_drawn(tmp_path / "limits.png")

    reward_axes, cost_axes = figures[0].axes[:2]
    safe, paper = reward_axes.containers
    assert safe.lines[0].get_ydata().tolist() == [610.0, 655.0]
    assert paper.lines[0].get_ydata().tolist() == [695.0, 695.0]
    bars = safe.lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx([610 - 200**0.5, 610 + 200**0.5])
    lines = [line for line in cost_axes.lines if line.get_label() == "limit"]
    assert [list(line.get_ydata()) for line in lines] == [[10.0, 10.0], [20.0, 20.0]]
    (stars,) = [line for line in reward_axes.lines if line.get_marker() == "*"]
    assert (stars.get_xdata().tolist(), list(stars.get_ydata())) == ([0], [679.0]), "limits of entries only"


def test_every_curve_stands_under_the_limit_that_it_is_compared_with(tmp_path, figures):
    many = [
        make_entry(
            [600.0],
            [cost],
            algorithm=f"a{number}",
            cost_limit=limit,
            train_seed=seed,
            extraction="safe" if number == 0 else "policy",
            feedback=number == 0,
        )
        for number in range(8)
        for seed in range(1 + number % 2)
        for limit, cost in ((10, 9.5), (20, 19.5), (80, 79.5))
    ]
    plot_limits(many, tmp_path / "limits.png", name_of=lambda summary: summary.algorithm.upper(), note="note")

    (reward_axes, cost_axes), title = figures[0].axes[:2], figures[0].get_suptitle()
    lines = [line for line in cost_axes.lines if line.get_label() == "limit"]
    for container in cost_axes.containers:
        for x, y in zip(*container.lines[0].get_data(), strict=True):
            (limit,) = [line for line in lines if line.get_xdata()[0] < x < line.get_xdata()[1]]
            assert y < limit.get_ydata()[0] == y + 0.5
    assert [container.get_label() for container in reward_axes.containers] == [f"A{n}" for n in range(8)]
    assert len({container.lines[0].get_color() for container in reward_axes.containers}) == 8
    assert "over training seeds, or over episodes where there is one seed\nnote" in title


def test_one_limit_without_data(tmp_path):
    plot_limits(ENTRIES[:1], tmp_path / "limits.png")
    assert _is_drawn(tmp_path / "limits.png")


def test_cost_return_cloud_with_means_and_episodes(tmp_path, figures):
    rng = np.random.default_rng(0)
    costs, returns = rng.integers(0, 80, 50), rng.uniform(0, 800, 50)
    played = rollout(BallCircler(), "ballcircle", episodes=3, seed=0, cost_limit=10, progress=False)
    told_none = rollout(BallCircler(), "ballcircle", episodes=2, seed=0, cost_limit=None, progress=False)
    path = tmp_path / "cloud.png"
    plot_cost_return(costs, returns, path, ENTRIES, [("safe", played), ("reward", told_none)])

    assert _is_drawn(path)
    axes = figures[0].axes[0]
    cloud, *dots = [
        scatter.get_offsets().data for scatter in axes.collections if len(scatter.get_offsets()) > 1
    ]
    np.testing.assert_allclose(cloud, np.stack([costs, returns], axis=1))
    np.testing.assert_allclose(dots[0], np.stack([played.cost_returns, played.returns], axis=1))
    np.testing.assert_allclose(dots[1], np.stack([told_none.cost_returns, told_none.returns], axis=1))
    frontier = axes.lines[0].get_ydata()
    assert (np.diff(frontier) >= 0).all()
    assert frontier[-1] == returns.max()
    means = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers]
    assert means == [(9.0, 610.0), (17.0, 655.0), (72.0, 695.0)], "what knows no limit is drawn once"


def test_a_baseline_is_drawn_once_with_its_episodes(tmp_path, figures):
    entries = [
        make_entry([690.0, 700.0], [70.0, 74.0], cost_limit=x, extraction="policy", feedback=False)
        for x in (10, 20)
    ]
    played = rollout(BallCircler(), "ballcircle", episodes=2, seed=0, cost_limit=None, progress=False)
    plot_cost_return(
        np.array([1, 2]), np.array([3.0, 4.0]), tmp_path / "c.png", entries, [("policy", played)]
    )
    axes = figures[0].axes[0]
    dots = [scatter.get_offsets().data for scatter in axes.collections if len(scatter.get_offsets()) > 1][1]
    np.testing.assert_allclose(dots, np.stack([played.cost_returns, played.returns], axis=1))
    assert len(axes.containers) == 1


def test_the_suffix_gives_the_format(tmp_path):
    plot_limits(ENTRIES, tmp_path / "limits.pdf")
    assert (tmp_path / "limits.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["p", "p.", "p.npg", ".png", "p.tmp"])
def test_a_suffix_that_is_no_format_is_refused_with_those_that_are(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: the suffix gives .* one of .*\.pdf, .*\.png, .*\.svg"):
        plot_limits(ENTRIES, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="entries of one task, got none"):
        plot_limits([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        plot_cost_return([1, 2, 3], [1, 2], tmp_path / "x.png", ENTRIES)
    with pytest.raises(ValueError, match=r"got \(0,\)"):
        plot_cost_return([], [], tmp_path / "x.png", ENTRIES)
    assert not (tmp_path / "x.png").exists()
