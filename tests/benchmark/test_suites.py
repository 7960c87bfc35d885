import numpy as np
import pytest
from benchmark_factory import entry, make_cells

from spi_diffusers.benchmark.cells import Outcome, missing_evaluations
from spi_diffusers.benchmark.suites import (
    DRAWS,
    SUITES,
    Cell,
    Evaluation,
    Suite,
    UnknownNameError,
    algorithms_of,
)
from spi_diffusers.benchmark.tables import table_data
from spi_diffusers.config.algorithms import BASELINES
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.tasks import TASKS, UnknownTaskError


def test_table1_holds_spi_safe_spi_and_every_baseline_on_eight_tasks():
    cells = make_cells(["table1"], seeds=[0, 1])
    assert len({cell.task for cell in cells}) == 8
    assert {cell.algorithm for cell in cells} == {"spi", "spi-paper", *BASELINES}
    assert len(cells) == 8 * 2 * (2 + len(BASELINES))
    # Seed by seed: a comparison with one seed is there before the second starts.
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    ball = next(cell for cell in cells if (cell.task, cell.algorithm) == ("ballcircle", "spi"))
    # Safe SPI is played once more without being told its running cost, as no baseline is.
    assert ball.evaluations == (Evaluation("safe", 10.0, 20, True), Evaluation("safe", 10.0, 20, False))
    hopper = next(cell for cell in cells if (cell.task, cell.algorithm) == ("hoppervelocity", "bc-safe"))
    assert hopper.train_limit == 20.0
    assert hopper.settings["cost_limit"] == 20.0


def test_what_is_missing_is_told_apart_by_the_feedback():
    (cell,) = make_cells(["table1"], tasks=["ballcircle"], algorithms=["spi"], seeds=[0], episodes=2)
    fed_back, alone = entry(), entry(feedback=False)
    assert missing_evaluations(cell, [fed_back]) == [Evaluation("safe", 10.0, 2, feedback=False)]
    assert missing_evaluations(cell, [alone]) == [Evaluation("safe", 10.0, 2, feedback=True)]
    assert not Outcome("done", entries=(fed_back,)).covers(cell)
    assert Outcome("done", entries=(fed_back, alone)).covers(cell)


def test_what_was_played_at_another_risk_does_not_count():
    (cell,) = make_cells(["limits"], tasks=["carrun"], algorithms=["spi"], seeds=[0], episodes=2)
    others = [entry("carrun", limit=one.cost_limit, risk=0.2) for one in cell.evaluations]
    usual = [entry("carrun", limit=one.cost_limit, risk=0.05) for one in cell.evaluations]
    assert missing_evaluations(cell, others) == [*cell.evaluations]
    assert missing_evaluations(cell, [*usual, *others]) == []
    found = table_data("limits", [*usual, *others]).entries
    assert [one.risk for group in found.values() for one in group] == [0.05] * len(usual)
    (asked,) = make_cells(["safe"], tasks=["carrun"], seeds=[0], episodes=2)
    missing = missing_evaluations(asked, [*usual, *others])
    assert {one.risk for one in missing if one.feedback} == {None, 0.01}
    assert {one.cost_limit for one in missing if one.feedback and one.risk is None} == {5, 15, 30}


def test_the_usual_risk_is_no_further_one():
    """Its entries would have the key of those that are played without naming a risk."""
    with pytest.raises(ValueError, match=r"the risk 0\.05 is played anyway"):
        Suite((), risks=(0.01, 0.05))


def test_limits_trains_spi_once_and_baselines_per_limit():
    cells = make_cells(["limits"], tasks=["ballcircle"], seeds=[0])
    found = {name: [cell for cell in cells if cell.algorithm == name] for name in ("spi", "bc", "bc-safe")}
    assert [len(found[name]) for name in ("spi", "bc", "bc-safe")] == [1, 1, 3]
    assert [e.cost_limit for e in found["spi"][0].evaluations] == [10.0, 20.0, 40.0]
    assert [e.cost_limit for e in found["bc"][0].evaluations] == [10.0, 20.0, 40.0]
    assert [cell.train_limit for cell in found["bc-safe"]] == [10.0, 20.0, 40.0]
    assert [[e.cost_limit for e in cell.evaluations] for cell in found["bc-safe"]] == [
        [10],
        [20],
        [40],
    ]


def test_safe_plays_safe_spi_in_every_way_at_more_limits_and_risks_on_more_tasks():
    cells = make_cells(["safe"], datasets={"": "datasets"})
    paper, more = [task.short_name for task in TASKS.values() if task.paper], SUITES["safe"].more_tasks
    assert (len(paper), len(more)) == (8, 3)
    assert [(cell.seed, cell.task) for cell in cells] == [
        (seed, task) for seed in range(3) for task in (*paper, *more)
    ]
    assert {cell.task for cell in make_cells(["safe", "table2"]) if cell.algorithm != "spi"} == set(paper)
    assert {cell.algorithm for cell in cells} == {"spi"}
    ball = next(cell for cell in cells if cell.task == "ballcircle")
    ways = {(e.extraction, e.feedback, e.risk, e.cost_limit, e.episodes) for e in ball.evaluations}
    told = [("safe", True, None), ("safe", False, None), ("reward", False, None)]
    risky = [("safe", True, 0.01), ("safe", True, 0.2)]
    assert ways == {
        *((*way, limit, 20) for way in told for limit in (5.0, 10.0, 15.0, 20.0, 30.0, 40.0)),
        *((*way, limit, 20) for way in risky for limit in (10.0, 20.0, 40.0)),
    }
    assert [cell.seed for cell in make_cells(["safe"], tasks=["ballcircle"], seeds=[7])] == [7]


def test_suites_share_a_training():
    together = make_cells(["table1", "table2", "limits"], tasks=["ballcircle"], seeds=[0])
    folders = [cell.folder for cell in together]
    assert len(set(folders)) == len(folders)
    assert sum(cell.algorithm == "spi-paper" for cell in together) == 1
    spi = next(cell for cell in together if cell.algorithm == "spi")
    assert [(e.cost_limit, e.feedback) for e in spi.evaluations] == [
        (10.0, True),
        (10.0, False),
        (20.0, True),
        (40.0, True),
    ]


@pytest.mark.parametrize("suite", ["table1", "table2", "sensitivity", "limits"])
def test_settings_of_every_cell_make_a_configuration(suite):
    for cell in make_cells([suite], tasks=["ballcircle", "antvelocity"], seeds=[3]):
        config = make_train_config(cell.settings)
        assert config.seed == 3
        weights = (config.spi.mu, config.spi.phi)
        if cell.algorithm == "spi-paper-no-safety":
            assert weights == (0.5, 0.0)
        if cell.algorithm == "spi-paper-no-reward":
            assert weights == (0.0, 0.5)
        drawn = suite == "sensitivity"
        assert config.algorithm == ("spi-paper" if drawn else cell.algorithm)
        assert Cell.from_dict(cell.to_dict()) == cell


def test_updates_and_datasets_for_all_and_for_one():
    cells = make_cells(
        ["table1"],
        tasks=["ballcircle", "carrun"],
        algorithms=["spi", "bc"],
        seeds=[0],
        updates={"": 100, "bc": 7},
        datasets={"": "datasets", "OfflineBallCircle-v0": "embedded"},
    )
    seen = {
        (cell.task, cell.algorithm): (cell.settings["updates"], cell.settings["dataset"]) for cell in cells
    }
    assert seen == {
        ("ballcircle", "spi"): (100, "embedded"),
        ("ballcircle", "bc"): (7, "embedded"),
        ("carrun", "spi"): (100, "datasets"),
        ("carrun", "bc"): (7, "datasets"),
    }


def test_wrong_names_say_what_was_meant():
    with pytest.raises(UnknownNameError, match=r"unknown suite 'table3'; did you mean table"):
        make_cells(["table3"])
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'bc-save'; did you mean bc-safe\?"):
        make_cells(["table1"], algorithms=["bc-save"])
    with pytest.raises(UnknownNameError, match="unknown algorithm 'cbq'"):
        make_cells(["table1"], updates={"cbq": 3})
    with pytest.raises(UnknownTaskError, match=r"unknown task 'balcircle'. Did you mean ballcircle"):
        make_cells(["table1"], tasks=["balcircle"])
    with pytest.raises(UnknownTaskError, match="unknown task 'x'"):
        make_cells(["table1"], datasets={"x": "data"})
    for empty in ({"seeds": []}, {"tasks": []}, {"episodes": 0}, {"seeds": [-1]}):
        with pytest.raises(ValueError, match="at least"):
            make_cells(["table1"], **empty)


def test_the_draws_are_uniform_on_the_simplex():
    drawn = np.random.default_rng(2026).dirichlet(np.ones(3), size=len(DRAWS))
    assert np.abs(np.array(DRAWS) - drawn).max() < 0.01  # whole hundredths that sum to 1
    for weights in DRAWS:
        assert min(weights) >= 0
        assert sum(round(100 * weight) for weight in weights) == 100


def test_the_draws_of_the_suite_are_always_the_same():
    names = ["spi-eta0.58-mu0.01-phi0.41", "spi-eta0.25-mu0.36-phi0.39", "spi-eta0.08-mu0.69-phi0.23"]
    assert sorted(algorithms_of("sensitivity")) == sorted(names)
