"""Speed and energy of a Velocity task, from data to a certificate; a slow test keeps both limits."""

import json

import pytest

from spi_diffusers.cli import main
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.deployment.graph import make_decision
from spi_diffusers.evaluation.assess import assess
from spi_diffusers.evaluation.certify import certify
from spi_diffusers.evaluation.evaluate import evaluate
from spi_diffusers.files import PolicyError
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.spaces.episode import PolicyOnShow
from spi_diffusers.training.train import train

pytest.importorskip("mujoco")


def with_energy(task: str) -> TransitionDataset:
    """The committed data, with the energy of its actions as a second cost."""
    data = load_transitions("datasets", task)
    energy = data.transitions.action.square().sum(dim=1).numpy()
    return data.with_costs({"cost": data.transitions.cost.numpy(), "energy": energy})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the shortest episodes of Hopper, which fall soon; as does the policy."""
    folder = tmp_path_factory.mktemp("costs")
    data = with_energy("hoppervelocity")
    data = data.select_episodes(data.episodes.length.argsort()[:24])
    write_parquet_dataset(data, folder / "data")
    options = ["--updates", "4", "--batch-size", "16", "--network.hidden-dims", "8", "--quiet"]
    assert (
        main(["train", "--dataset", str(folder / "data"), "--output-dir", str(folder / "run"), *options]) == 0
    )
    return folder / "run"


def test_training_learns_each_cost(run):
    policy = load_pipeline(run)
    config = policy.evaluation_critic.config
    assert (policy.cost_names, config["cost_high"][0]) == (("cost", "energy"), 1.0)
    assert policy.evaluation_critic.residuals.shape[0] == 2
    assert (policy.evaluation_critic.residuals.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_evaluation_tells_of_each_cost(run, tmp_path, capsys):
    options = ["--episodes", "2", "--no-video", "--quiet", "--output", str(tmp_path)]
    assert (
        main(["evaluate", str(run), "--cost-limit", "20,30", "0,1000", *options, "--extraction", "safe"]) == 0
    )
    printed = capsys.readouterr().out
    assert "20, 30" in printed
    assert "energy" in printed
    assert (tmp_path / "limits.png").is_file()
    first, second = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert (first["cost_limit"], second["cost_limit"]) == ([0.0, 1000.0], [20.0, 30.0])
    assert second["cost_names"] == ["cost", "energy"]
    assert second["within_limit"] <= min(second["within_each"])
    shares = [mean / limit for mean, limit in zip(second["cost_mean"], second["cost_limit"], strict=True)]
    assert second["normalized_cost"] == pytest.approx(max(shares))


def test_episodes_are_over_if_any_cost_is(run):
    """The robot cannot act without energy, and takes less than 1000 steps."""
    (entry,) = evaluate(run, cost_limits=[(1000.0, 1e-6)], episodes=2, extractions=["safe"], progress=False)
    assert (entry.within_limit, entry.within_each) == (0.0, (1.0, 0.0))
    certificate = certify(run, cost_limits=[(1000.0, 1e-6)], episodes=3, progress=False)
    (row,) = certificate.limits
    assert (row.over, row.over_bound, certificate.cost_names) == (3, 1.0, ("cost", "energy"))
    assert len(row.cost_mean_bound) == len(row.cost_worst) == len(certificate.highest_cost) == 2
    assert type(certificate).read(certificate.save(run / "again.json")) == certificate
    assert "told a limit of 1000, 1e-06 (cost, energy), this policy" in repr(certificate)


def test_assessment_expects_each_cost(run):
    data = load_transitions(run.parent / "data")
    assessment = assess(run, data, cost_limits=[(1.0, 1.0), (500.0, 5000.0)], max_transitions=300)
    assert [len(row.expected_cost) for row in assessment.limits] == [2, 2]
    assert len(assessment.smallest_limit) == 2
    assert any("few of the 24 episodes" in warning for warning in assessment.warnings)
    with pytest.raises(ValueError, match=r"has the cost\(s\) cost, but the policy's are cost, energy"):
        assess(run, data.with_costs({"cost": data.transitions.cost.numpy()}))


@pytest.mark.parametrize("limits", [None, [20.0], [(1.0, 2.0, 3.0)]])
def test_limits_of_another_number_of_costs_are_refused(run, limits):
    for use in (evaluate, certify):
        with pytest.raises(ValueError, match="the policy has the costs cost, energy: a cost limit needs 2"):
            use(run, cost_limits=limits)


def test_logged_episodes_certify_that_all_limits_are_kept(run, tmp_path):
    """Nine of 20 episodes cost more than 10, and four of these have more than 115 of energy."""
    file = tmp_path / "played.csv"
    file.write_text("\n".join(["episode,cost,energy", *(f"{k},{k},{100 + k}" for k in range(20)), ""]))
    (row,) = certify(run, cost_limits=[(10.0, 115.0)], episodes_file=file).limits
    assert (row.over, row.episodes, row.cost_mean, row.cost_worst) == (9, 20, (9.5, 109.5), (19.0, 119.0))
    with pytest.raises(ValueError, match="the policy has the costs cost, energy: a cost limit needs 2"):
        certify(run, episodes_file=file)
    file.write_text("episode,cost\n0,1\n")
    with pytest.raises(ValueError, match=r"has no column 'energy', but.*columns episode, cost and energy$"):
        certify(run, cost_limits=[(10.0, 115.0)], episodes_file=file)


def test_what_knows_one_cost_only_says_so(run):
    with pytest.raises(PolicyError, match="cards, publishing and the page know policies of one cost only"):
        read_policy_files(run)
    with pytest.raises(PolicyError, match="cards, publishing and the page know policies of one cost only"):
        PolicyOnShow.open(run)
    with pytest.raises(ValueError, match="a policy of the costs cost, energy cannot be exported"):
        make_decision(load_pipeline(run))
    for algorithm, more in (("cpq", {"cost_limit": 20.0}), ("spi-paper", {})):
        with pytest.raises(ConfigError, match=f"but {algorithm} keeps a limit of one cost at most"):
            train(dataset=run.parent / "data", algorithm=algorithm, updates=1, progress=False, **more)


@pytest.mark.slow
def test_each_limit_is_kept_that_binds(tmp_path):
    """Eight minutes. Half of what the policy has spent of a cost is kept, too, by acting in another way."""
    write_parquet_dataset(with_energy("halfcheetahvelocity"), tmp_path / "data")
    policy = train(dataset=tmp_path / "data", updates=4000, seed=0, progress=False)

    def played(*limit):
        (entry,) = evaluate(policy, cost_limits=[limit], episodes=10, extractions=["safe"], progress=False)
        assert entry.within_limit >= 0.9
        return entry

    usual = played(40.0, 3000.0)
    cost, energy = usual.cost_mean
    assert played(40.0, energy / 2).cost_mean[1] <= energy / 2
    assert played(cost / 2, 3000.0).cost_mean[0] <= cost / 2
