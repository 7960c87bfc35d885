"""The committed tables of the paper's experiments are those of the committed results."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from spi_diffusers.benchmark.report import TABLES_FILE, write_report
from spi_diffusers.config.algorithms import BASELINES
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.summary import shown, shown_share

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results" / "paper"


def documented_reports() -> list[tuple[list[Path], Path]]:
    """Of every documented command that makes a report: its results files, and the folder it writes."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    reports = []
    for line in text.splitlines():
        if line.startswith("spi benchmark --report"):
            words = shlex.split(line)
            output = words.index("--output")
            patterns = words[words.index("--report") + 1 : output]
            files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
            reports.append((files, ROOT / words[output + 1]))
    return reports


def test_the_report_is_of_all_results():
    ((files, folder),) = documented_reports()
    assert len(files) == 9  # the paper's systems and the baselines, and safe SPI on eight tasks
    assert folder == FOLDER / "report"
    entries = read_results(FOLDER / "results.json")
    names = ("spi-paper", "spi-paper-no-safety", "spi-paper-no-reward")
    names += ("bc", "bc-safe", "bcq-lag", "bear-lag", "cpq", "coptidice")
    tasks = [task.name for task in TASKS.values() if task.paper]
    found = {(entry.task, entry.algorithm) for entry in entries}
    drawn = {(task, name) for task, name in found if name.startswith("spi-eta")}
    assert found - drawn == set(itertools.product(tasks, names))
    seeds = {pair: {e.train_seed for e in entries if (e.task, e.algorithm) == pair} for pair in found - drawn}
    few = {(task, name) for (task, name), of_it in seeds.items() if of_it != {0, 1, 2}}
    velocity = [task.name for task in TASKS.values() if task.paper and task.simulator == "velocity"]
    assert few == set(itertools.product(velocity, names[3:]))
    assert all(seeds[pair] == {0} for pair in few)
    # Baselines for every limit, on BallCircle: one seed.
    limits = {(e.algorithm, e.cost_limit) for e in entries if e.cost_limit != get_task(e.task).cost_limits[0]}
    assert limits == set(itertools.product(names[3:], (20.0, 40.0)))
    # Learning curves of three draws, ten points each, on the Bullet tasks.
    bullet = [task.name for task in TASKS.values() if task.paper and task.simulator == "bullet"]
    assert drawn == set(itertools.product(bullet, {name for _, name in drawn}))
    assert len(drawn) == 4 * 3 * 10


@pytest.mark.parametrize(
    ("results", "folder"), documented_reports(), ids=lambda value: getattr(value, "name", "")
)
def test_committed_tables_and_figures_come_from_the_committed_results(results, folder, tmp_path):
    report = write_report(results, tmp_path)
    written = (tmp_path / TABLES_FILE).read_text(encoding="utf-8")
    assert written == (folder / TABLES_FILE).read_text(encoding="utf-8")
    assert {path.name for path in report.files} == {path.name for path in folder.iterdir()}
    for path in report.files:
        if path.suffix == ".png":  # another machine may draw an edge a little differently
            assert compare_images(str(folder / path.name), str(path), tol=2.0) is None


def test_the_comparison_with_the_reference_implementations_is_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {row[0]: row for row in lines if len(row) == 7}
    for file, algorithms, column in (
        ("ours_on_reference_data.json", ["bc", "bc-safe", "bcq-lag", "bear-lag", "coptidice", "cpq"], 4),
        ("ours_with_benchmark_targets.json", ["bcq-lag", "bear-lag", "coptidice", "cpq"], 3),
    ):
        entries = read_results(FOLDER / file)
        assert [entry.algorithm for entry in entries] == algorithms
        for entry in entries:
            row = rows[entry.algorithm]
            scores = f"{shown(entry.normalized_reward)} / {shown(entry.normalized_cost)}"
            assert row[column] == f"{scores} / {shown_share(entry.within_limit)}"
            assert row[1] == f"{entry.updates:,}"
            assert (entry.cost_limit, entry.episodes, entry.train_seed) == (10.0, 20, 0)
            if column == 4:
                assert float(row[6]) == pytest.approx(entry.updates / entry.train_seconds, rel=0.01)
    # Within the reference's own swings, where the same is computed: to the two digits that are left of it.
    for name, row in rows.items():
        if name in BASELINES:
            reference, ours = (float(cell.split(" / ")[0]) for cell in (row[2], row[3] or row[4]))
            assert abs(ours - reference) < 0.115, name


def test_baselines_train_at_least_as_long_as_spi_by_the_committed_measurement():
    measured = json.loads((ROOT / "results" / "benchmark_algorithms.json").read_text(encoding="utf-8"))
    enough = {row["algorithm"]: row["updates_as_long_as_spi"] for row in measured["results"]}
    for name in BASELINES:
        assert (
            make_train_config({"task": "ballcircle", "algorithm": name, "cost_limit": 10.0}).updates
            >= enough[name]
        ), name
    assert measured["settings"]["spi_updates"] == make_train_config({"task": "ballcircle"}).updates
