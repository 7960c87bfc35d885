"""Tables and figures from a results file alone."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from benchmark_factory import entry, make_cells

from spi_diffusers.benchmark import figures
from spi_diffusers.benchmark.cells import Outcome
from spi_diffusers.benchmark.figures import (
    common_curve_tasks,
    learning_curves,
    pixel_world_values,
    plot_averages,
    plot_learning_curves,
)
from spi_diffusers.benchmark.report import write_report, write_task_results
from spi_diffusers.benchmark.tables import (
    episodes_table,
    improvement_table,
    limits_data,
    paper_table,
    results_table,
    statistics_table,
    table_data,
)
from spi_diffusers.evaluation.entries import DivergedRun
from spi_diffusers.evaluation.results import ResultsFileError, read_results, write_results

BALL = "OfflineBallCircle-v0"


@pytest.fixture
def drawings(monkeypatch):
    """The figures that are drawn, in order."""
    drawn = []
    real = figures.figure_at

    @contextlib.contextmanager
    def recording(*arguments):
        with real(*arguments) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(figures, "figure_at", recording)
    return drawn


def rows_of(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_published_numbers_agree_with_the_papers_own_averages(name):
    table = paper_table(name)
    assert len(table.rows) == 8
    for algorithm, average in table.average.items():
        ours = np.mean([row[algorithm] for row in table.rows.values()], axis=0)
        assert np.abs(ours - average).max() <= 0.0051  # two digits in print


def test_best_safe_reward_is_bold_and_unsafe_is_marked():
    entries = [
        *(entry(algorithm="spi", seed=s, reward=r, cost=0.9) for s, r in ((0, 0.6), (1, 0.8))),
        entry(algorithm="spi-paper", extraction="reward", reward=0.95, cost=5.0),
        entry(algorithm="bc-safe", extraction="policy", reward=0.5, cost=0.1),
        entry(algorithm="spi", seed=0, reward=0.1, limit=20.0),  # another limit is not in Table 1
    ]
    rows = rows_of(results_table(table_data("table1", entries)))
    assert rows["task (limit, seeds)"] == ["safe SPI", "SPI", "BC-Safe"]
    assert rows["ballcircle (10, 1 to 2 seeds)"] == [
        "**0.70 ± 0.14** / 0.90 ± 0.00",
        "0.95 / 5.00 ✗",
        "0.50 / 0.10",
    ]


def test_a_diverged_seed_is_shown_and_takes_the_algorithm_out_of_the_ranking():
    entries = [
        entry(algorithm="spi", reward=0.7, cost=0.5),
        entry(algorithm="bc", extraction="policy", reward=0.6, cost=0.5),
    ]
    lost = [DivergedRun(BALL, "spi", None, 1, "nan"), DivergedRun(BALL, "bc-safe", 10.0, 0, "nan")]
    data = table_data("table1", entries, lost)
    assert rows_of(results_table(data))["ballcircle (10, 1 seed)"] == [
        "0.70 / 0.50 † 1",
        "**0.60** / 0.50",
        "diverged † 1",
    ]
    # BC-Safe has no figures on any task: nothing can be averaged over the same tasks.
    assert statistics_table(data).endswith("no averages to compare. Missing: ballcircle (BC-Safe).")


def test_averages_compare_over_the_tasks_that_all_have():
    entries = [
        entry("ballcircle", "spi", reward=0.5, cost=0.2),
        entry("ballcircle", "spi", seed=1, reward=0.7, cost=0.7),
        entry("carrun", "spi", reward=0.9, cost=0.3),
        entry("ballcircle", "bc", extraction="policy", reward=0.4, cost=0.4),
    ]
    data = table_data("table1", entries)
    assert data.common_tasks == (BALL,)
    assert episodes_table(data).splitlines()[2:5] == [
        "| ballcircle (10) | safe SPI | 4 | 100% [40%, 100%] | 0.70 | 0.70 | 0.70 |",
        "| ballcircle (10) | BC | 2 | 100% [16%, 100%] | 0.40 | 0.40 | 0.40 |",
        "| carrun (10) | safe SPI | 2 | 100% [16%, 100%] | 0.30 | 0.30 | 0.30 |",
    ]
    rows = rows_of(statistics_table(data))
    assert rows["safe SPI"][0] == "0.60 ± 0.14"
    assert rows["BC"][0] == "0.40"
    assert "Left out, as algorithms have no results there: carrun (BC)." in statistics_table(data)


def test_the_costs_of_single_episodes_are_shown_where_the_results_hold_them():
    old = replace(entry(), cost_p90=None, cost_worst=None)
    assert "worst cost" not in episodes_table(table_data("table1", [old]))
    mixed = [old, entry(seed=1), entry("carrun", cost=1.5)]
    assert episodes_table(table_data("table1", mixed)).splitlines()[2:4] == [
        "| ballcircle (10) | safe SPI | 4 | 100% [40%, 100%] | 0.50 |  |  |",
        "| carrun (10) | safe SPI | 2 | 0% [0%, 84%] | 1.50 | 1.50 | 1.50 |",
    ]


def test_improvement_is_told_at_equal_safety_and_over_all_tasks():
    entries = [
        *(entry(task, "spi", seed, 0.5, 0.5) for task in ("ballcircle", "carrun") for seed in (0, 1)),
        entry("ballcircle", "bc", extraction="policy", reward=0.9, cost=0.2),
        entry("carrun", "bc", extraction="policy", reward=0.9, cost=5.0),
        *(entry(task, "cpq", extraction="policy", cost=5.0) for task in ("ballcircle", "carrun")),
    ]
    text = improvement_table(table_data("table1", entries))
    assert rows_of(text)["BC"] == ["1 of 2", "0% [0%, 0%]", "50% [50%, 50%]"]
    assert rows_of(text)["CPQ"] == ["0 of 2", "", "100% [100%, 100%]"]
    assert improvement_table(table_data("table1", entries[:4])) is None


def test_safe_spi_without_its_running_cost_has_a_row_of_its_own():
    entries = [
        entry("ballcircle", "spi", reward=0.7, cost=0.5),
        entry("ballcircle", "spi", reward=0.5, cost=0.9, feedback=False),
        entry("ballcircle", "bc", extraction="policy", reward=0.6, cost=0.4),
        entry("carrun", "spi", reward=0.9),
    ]
    data, alone = (table_data("table1", entries, feedback=feedback) for feedback in (True, False))
    rows = rows_of(statistics_table(data, alone))
    assert rows["safe SPI"][0] == "0.70"
    assert rows["safe SPI, cost not fed back"][0] == "0.50"
    assert rows["BC"][0] == "0.60"
    assert "told its running cost" in statistics_table(data)
    assert (data.best_safe(BALL), alone.best_safe(BALL)) == ("spi", "bc")
    fed_back = [entries[0], *entries[2:]]
    data, alone = (table_data("table1", fed_back, feedback=feedback) for feedback in (True, False))
    assert "safe SPI, cost not fed back" not in rows_of(statistics_table(data, alone))
    # Results of it on more tasks than the others have change nothing.
    more = [*entries[:3], entry("carrun", "bc", extraction="policy"), entry("carrun", "spi", feedback=False)]
    data, alone = (table_data("table1", more, feedback=feedback) for feedback in (True, False))
    assert rows_of(statistics_table(data, alone))["safe SPI, cost not fed back"][0] == "0.50"
    # A task that the others have, but not it: an average over fewer tasks would not compare.
    entries.append(entry("carrun", "bc", extraction="policy", reward=0.6))
    data, alone = (table_data("table1", entries, feedback=feedback) for feedback in (True, False))
    assert "safe SPI, cost not fed back" not in rows_of(statistics_table(data, alone))


def test_learning_curves_by_share_of_training():
    name = "spi-eta0.25-mu0.36-phi0.39"
    entries = [
        entry("ballcircle", name, extraction="reward", updates=200, reward=0.8),
        entry("ballcircle", f"{name}@100", extraction="reward", updates=100, reward=0.4),
        entry("carrun", name, extraction="reward", updates=50, reward=0.6),
        entry("ballcircle", "spi"),
    ]
    (curve,) = learning_curves(entries)
    assert curve.weights == (0.25, 0.36, 0.39)
    assert {share: len(group) for share, group in curve.points.items()} == {0.5: 1, 1.0: 2}


def test_learning_curves_are_averaged_over_the_tasks_on_which_all_have_finished():
    first, second = "spi-eta0.25-mu0.36-phi0.39", "spi-eta0.08-mu0.69-phi0.23"
    lost = "spi-eta0.50-mu0.50-phi0.00"
    entries = [
        *(entry(task, first, extraction="reward", updates=50) for task in ("ballcircle", "carrun")),
        entry("ballcircle", second, extraction="reward", updates=50),
        entry("carrun", f"{second}@25", extraction="reward", updates=25),
    ]
    curves = learning_curves(entries, [DivergedRun(BALL, lost, None, seed, "nan") for seed in (0, 1)])
    assert [(curve.weights[0], curve.diverged) for curve in curves] == [(0.08, 0), (0.25, 0), (0.5, 2)]
    assert curves[2].points == {}
    assert common_curve_tasks(curves) == ((BALL,), ("OfflineCarRun-v0",))


def test_a_mean_of_exactly_the_limit_keeps_it():
    costs = (1.35, 1.135, 0.515)
    assert np.mean(costs) > 1  # by its last bit
    data = table_data("table1", [entry(seed=s, cost=c) for s, c in enumerate(costs)])
    (row,) = data.statistics()
    assert (row.safe_tasks, data.best_safe(BALL)) == (1, "spi")
    assert rows_of(results_table(data))["ballcircle (10, 3 seeds)"] == ["**0.50 ± 0.00** / 1.00 ± 0.43"]


def test_figures_of_averages_show_the_means_the_intervals_and_the_papers(drawings, tmp_path):
    entries = [
        *(entry(seed=s, reward=r, cost=0.5) for s, r in enumerate((0.6, 0.8))),
        entry("carrun", reward=0.9, cost=0.5),
        *(
            entry(t, "bc", extraction="policy", reward=0.4, cost=c)
            for t, c in (("ballcircle", 3), ("carrun", 1))
        ),
    ]
    data = table_data("table1", entries)
    plot_averages(data, "reward", tmp_path / "reward.png", "t")
    plot_averages(data, "cost", tmp_path / "cost.png", "t")
    reward, cost = (figure.axes[0] for figure in drawings)
    assert reward.get_title() == "t, over 2 tasks"
    ours, theirs = (container.patches for container in reward.containers[:1] + reward.containers[-1:])
    assert [bar.get_height() for bar in ours] == pytest.approx([0.8, 0.4])  # (0.7 + 0.9) / 2
    # In the paper's Table 1 BC has 0.63 on BallCircle and 0.96 on CarRun; safe SPI is not in it.
    assert [bar.get_height() for bar in theirs] == pytest.approx([(0.63 + 0.96) / 2])
    # The interval spans both resampled means of BallCircle; CarRun's one seed adds nothing, as ‡ says.
    (low_high,) = (c.lines[2][0].get_segments()[0][:, 1] for c in reward.containers if hasattr(c, "has_yerr"))
    assert low_high == pytest.approx([0.75, 0.85])
    assert [text.get_text() for text in reward.get_xticklabels()] == ["safe SPI ‡ 1", "BC"]
    assert drawings[0].legends[0].get_title().get_text().startswith("‡ n: n tasks have a single seed")
    assert [bar.get_height() for bar in cost.containers[0].patches] == pytest.approx([0.5, 2.0])


def test_figures_of_random_weights_show_means_over_tasks(drawings, tmp_path):
    name = "spi-eta0.25-mu0.36-phi0.39"
    entries = [
        entry(
            task, f"{name}@50" if half else name, extraction="reward", reward=r, updates=50 if half else 100
        )
        for task, half, r in (
            ("ballcircle", 1, 0.2),
            ("ballcircle", 0, 0.6),
            ("carrun", 1, 0.4),
            ("carrun", 0, 0.8),
        )
    ]
    tasks = (BALL, "OfflineCarRun-v0")
    plot_learning_curves(learning_curves(entries), tasks, "reward", tmp_path / "reward.png", "t")
    (axes,) = drawings[0].axes
    (curve,) = axes.lines
    assert curve.get_xydata() == pytest.approx(np.array([[50, 0.3], [100, 0.7]]))


def test_limits_need_spi_and_a_baseline_at_several_limits():
    spi = [entry(limit=limit) for limit in (10.0, 20.0)]
    baseline = [entry(algorithm="bc-safe", extraction="policy", limit=limit) for limit in (10.0, 20.0)]
    single = entry(algorithm="cpq", extraction="policy", limit=10.0)
    assert limits_data([*spi, single]).rows == ()
    # Once there is a figure, what has a single limit is in it too.
    data = limits_data([*spi, *baseline, single])
    assert data.rows == ((BALL, 10.0), (BALL, 20.0))
    assert data.groups(BALL, 10.0) == {"spi": spi[:1], "bc-safe": baseline[:1], "cpq": [single]}
    assert data.groups(BALL, 20.0) == {"spi": spi[1:], "bc-safe": baseline[1:], "cpq": []}


def test_pixel_world_values_are_the_papers_closed_forms():
    values = pixel_world_values([3, 6], 0.9)
    assert values["cost"] == pytest.approx([0.9**3, 0.9**6])
    assert values["safety"][1] == pytest.approx(sum(0.9**k for k in range(6)))
    assert values["safety_stay"] == pytest.approx([10.0, 10.0])
    # A survival bonus: the goal ends the episode after n - 1 steps, the trap after n + 1.
    assert values["safety_goal"] == pytest.approx([sum(0.9**k for k in range(n - 1)) for n in (3, 6)])
    far = pixel_world_values([200], 0.9)
    assert far["cost"][0] < 1e-8 < far["safety"][0]


def test_report_draws_what_the_results_hold_and_names_the_rest(tmp_path):
    drawn = "spi-eta0.25-mu0.36-phi0.39"
    entries = [
        *(entry(algorithm="spi", seed=s, reward=0.6 + s / 10, limit=x) for s in (0, 1) for x in (10.0, 20.0)),
        *(entry(algorithm="bc", extraction="policy", seed=s, limit=x) for s in (0, 1) for x in (10.0, 20.0)),
        entry(algorithm=f"{drawn}@50", extraction="reward", updates=50),
        entry(algorithm=drawn, extraction="reward"),
    ]
    results = tmp_path / "results.json"
    write_results(results, entries, [DivergedRun(BALL, "spi", None, 2, "loss is nan")])
    report = write_report([results], tmp_path / "report")
    assert sorted(path.name for path in report.files) == [
        "figure_2_pixel_world.png",
        "figure_4_average_reward.png",
        "figure_5_average_cost.png",
        "figure_8_random_weights_reward.png",
        "figure_9_random_weights_cost.png",
        "limits_ballcircle.png",
        "profile_table1.png",
        "tables.md",
    ]
    assert all(path.stat().st_size > 1000 for path in report.files)
    assert any(reason.startswith("Table 2") for reason in report.left_out)
    text = (tmp_path / "report" / "tables.md").read_text()
    assert text == report.text
    assert "* ballcircle, safe SPI, seed 2: loss is nan" in text
    assert "paper, other data" in text


def test_report_says_which_seeds_and_tasks_its_figures_leave_out(tmp_path):
    names = ("spi-eta0.08-mu0.69-phi0.23", "spi-eta0.25-mu0.36-phi0.39")
    entries = [
        *(entry("ballcircle", name, extraction="reward") for name in names),
        entry("carrun", names[0], extraction="reward"),
        *(entry(limit=limit) for limit in (10.0, 20.0)),
        *(
            entry(algorithm="cpq", extraction="policy", reward=r, limit=x)
            for x, r in ((10.0, 0.9), (20.0, 0.4))
        ),
    ]
    results, folder = tmp_path / "results.json", tmp_path / "report"
    lost = [DivergedRun(BALL, "cpq", 10.0, 1, "loss is nan")]
    lost += [DivergedRun(BALL, "coptidice", limit, 0, "loss is nan") for limit in (10.0, 20.0)]
    write_results(results, entries, lost)
    report = write_report([results], folder)
    assert "carrun in Figures 8 and 9: not every draw has finished there" in report.left_out
    limits = rows_of(report.text[report.text.index("## Every limit") :])
    # CPQ has the higher reward at 10, but as one of its seeds diverged, it is not ranked.
    assert limits["ballcircle (10, 1 seed)"] == ["**0.50** / 0.50", "0.90 / 0.50 † 1", "diverged † 1"]
    assert limits["ballcircle (20, 1 seed)"] == ["**0.50** / 0.50", "0.40 / 0.50", "diverged † 1"]
    assert "ballcircle in the averages of Table 1: comparison: nothing of COptiDICE" in report.left_out
    drawn = rows_of(report.text[report.text.index("## Random weights") : report.text.index("## Every limit")])
    assert drawn["task (limit, seeds)"] == ["eta 0.08, mu 0.69, phi 0.23", "eta 0.25, mu 0.36, phi 0.39"]

    # A later report without the baseline must not leave its figures beside its own tables.
    mine = {"figure_of_mine.png", "figure_3_mine.png", "limits_of_mine.png"}
    for name in mine:
        (folder / name).write_bytes(b"mine")
    write_results(results, entries[:5])
    later = write_report([results], folder)
    assert "limits_ballcircle.png: of an earlier report, removed" in later.left_out
    assert {path.name for path in folder.iterdir()} == {p.name for p in later.files} | mine


def test_report_of_a_broken_file_is_refused(tmp_path):
    broken = tmp_path / "results.json"
    write_results(broken, [entry()])
    broken.write_text(broken.read_text()[:-40])
    with pytest.raises(ResultsFileError, match="not complete JSON"):
        write_report([broken], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_report_of_several_files_takes_each_result_once(tmp_path):
    spi, bc = entry(reward=0.7), entry(algorithm="bc", extraction="policy", reward=0.4)
    write_results(tmp_path / "a.json", [spi])
    write_results(tmp_path / "b.json", [spi, bc])
    report = write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "report")
    assert rows_of(report.text)["ballcircle (10, 1 seed)"] == ["**0.70** / 0.50", "0.40 / 0.50"]
    write_results(tmp_path / "b.json", [entry(reward=0.8), bc])
    with pytest.raises(ResultsFileError, match=r"b\.json and .*a\.json hold different results of task="):
        write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "report")


def test_report_of_different_data_is_refused(tmp_path):
    write_results(tmp_path / "a.json", [entry()])
    other = replace(entry(algorithm="bc", extraction="policy"), dataset={"id": "mine", "sha256": "1" * 64})
    write_results(tmp_path / "b.json", [other])
    with pytest.raises(ResultsFileError, match=r"b\.json and .*a\.json: .*different data \(SHA-256 11111111"):
        write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_report_of_a_run_that_diverged_and_did_not_is_refused(tmp_path):
    write_results(tmp_path / "a.json", [], [DivergedRun(BALL, "cpq", 10.0, 0, "nan")])
    write_results(tmp_path / "b.json", [entry(algorithm="cpq", extraction="policy")])
    for files in (("a.json", "b.json"), ("b.json", "a.json")):
        with pytest.raises(
            ResultsFileError, match=r"b\.json holds results of task=.*by another file diverged"
        ):
            write_report([tmp_path / name for name in files], tmp_path / "report")


def test_a_run_that_diverged_at_another_limit_is_not_of_the_table():
    entries = [entry(algorithm="spi"), entry(algorithm="bc", extraction="policy")]
    data = table_data("table1", entries, [DivergedRun(BALL, "cpq", 40.0, 0, "nan")])
    assert data.algorithms == ("spi", "bc")


def test_averages_without_a_common_task_are_refused(tmp_path):
    entries = [entry("ballcircle"), entry("carrun", "bc", extraction="policy")]
    with pytest.raises(ValueError, match="no task has results of every algorithm"):
        plot_averages(table_data("table1", entries), "reward", tmp_path / "x.png", "t")
    assert list(tmp_path.iterdir()) == []


def test_each_tasks_results_and_plot_are_written_beside_other_seeds(tmp_path):
    cells = make_cells(["safe"], tasks=["ballcircle", "carrun"], seeds=[0])
    limits = (10.0, 20.0, 40.0)
    ball = Outcome("done", entries=tuple(entry(limit=limit) for limit in limits))
    outcomes = dict(zip(cells, [ball, Outcome("failed", "no disk")], strict=True))
    write_results(tmp_path / "ballcircle.json", [entry(seed=1), entry(reward=0.9)])
    files = write_task_results(outcomes, {"ballcircle": None, "carrun": "datasets"}, tmp_path)
    assert files == [tmp_path / "ballcircle.json", tmp_path / "ballcircle_limits.png"]
    assert read_results(files[0]) == sorted([*ball.entries, entry(seed=1)], key=lambda one: one.key)
    assert files[1].stat().st_size > 1000
