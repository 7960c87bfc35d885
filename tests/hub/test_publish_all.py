"""`spi publish --all`, by the real client in this process against a real (loopback) server."""

import json
import shutil

import pytest
from hub_faults import Fault
from hub_server import TOKEN
from policy_factory import INFO, edit_json, make_entry, make_run

from spi_diffusers.cli import main
from spi_diffusers.evaluation.results import results_text, write_results
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import assemble

NAMES = ("spi-antcircle", "spi-ballcircle", "spi-paper-ballcircle")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three kinds of policy, one of them of two training seeds."""
    root = tmp_path_factory.mktemp("runs") / "outputs"
    root.mkdir()
    make_run(root / "ball0", (make_entry([600, 640], [4, 8]),))
    make_seed(root, 1, make_entry([500, 540], [6, 10], train_seed=1))
    shutil.copytree(root / "ball0", root / "paper")
    edit_json(root / "paper" / "policy" / "train_info.json", algorithm="spi-paper")
    write_results(
        root / "paper" / "evaluation" / "results.json", [make_entry([700], [50], algorithm="spi-paper")]
    )
    shutil.copytree(root / "ball0", root / "ant")  # not played, only published
    edit_json(root / "ant" / "policy" / "model_index.json", task="OfflineAntCircle-v0")
    shutil.rmtree(root / "ant" / "evaluation")
    return root


def make_seed(root, seed, entry):
    shutil.copytree(root / "ball0", root / f"ball{seed}")
    edit_json(root / f"ball{seed}" / "policy" / "train_info.json", train_seed=seed)
    edit_json(root / f"ball{seed}" / "policy" / "train_config.json", seed=seed)
    write_results(root / f"ball{seed}" / "evaluation" / "results.json", [entry])


@pytest.fixture
def outputs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "outputs")


@pytest.fixture
def publish(hub, capsys):
    """Runs the command; gives its exit code and what it printed."""

    def run(*words):
        code = main(["publish", "--all", *map(str, words), "--token", TOKEN, "--quiet"])
        return code, *capsys.readouterr()

    return run


def names(hub):
    return sorted(repo_id for _, repo_id in hub.store.repos)


def commits(hub):
    return {repo.id: len(repo.commits) for repo in hub.store.repos.values()}


def held(hub):
    (collection,) = hub.store.collections.values()
    return [item["id"] for item in collection["items"]]


def test_all_at_once_and_then_nothing_to_do(hub, publish, outputs):
    hub.store.put("datasets", "org/data", {})
    words = (outputs, "org", "--seed", 0, "--dataset", "org/data", "--private")
    code, out, err = publish(*words, "--dry-run")
    assert (code, hub.writes(), hub.store.collections) == (0, [], {})
    assert "1/3 org/spi-antcircle: planned" in out
    assert "'Safe policies by SPI' will be made; to put in: org/spi-antcircle, org/spi-ballcircle, " in out
    assert f"left out: {outputs / 'ball1' / 'policy'}: weights of training seed 1" in err

    code, out, err = publish(*words)
    assert (code, "failed" in out + err) == (0, False)
    models = [f"org/{name}" for name in NAMES]
    assert names(hub) == ["org/data", *models]
    assert all(hub.store.get("models", name).private for name in models)
    assert held(hub) == [*models, "org/data"]
    (slug,) = hub.store.collections
    assert "3/3 org/spi-paper-ballcircle: published" in out
    assert f"Next: spi leaderboard antcircle --collection {slug}" in out
    paper = hub.store.get("models", "org/spi-paper-ballcircle").files
    content = assemble(read_policy_files(outputs / "paper"), "org/spi-paper-ballcircle")
    assert paper == {path: x if isinstance(x, bytes) else x.read_bytes() for path, x in content.items()}

    hub.log.clear()
    code, out, err = publish(*words)
    assert (code, hub.writes()) == (0, [])
    assert out.count(": unchanged") == 3
    assert "Collection: holds all of it already" in out


def test_the_card_has_the_results_of_all_training_seeds(hub, publish, outputs):
    assert publish(outputs, "org", "--seed", 1)[0] == 0
    files = hub.store.get("models", "org/spi-ballcircle").files
    entries = (make_entry([600, 640], [4, 8]), make_entry([500, 540], [6, 10], train_seed=1))
    assert files["results.json"] == results_text(entries).encode()
    assert json.loads(files["train_info.json"])["train_seed"] == 1
    # By hand: means 620 and 520, 6 and 8; deviations over the two seeds 100 / sqrt 2 and 2 / sqrt 2.
    card = files["README.md"].decode()
    assert "| 10 | safe extraction, cost fed back | 570 ± 71 | 7.0 ± 1.4 |" in card
    assert "training seeds 0, 1; the weights here are those of seed 1" in card
    alone = (outputs / "ball1" / "evaluation" / "limits.png").read_bytes()
    assert files["plots/limits.png"] != alone


@pytest.mark.parametrize(
    ("file", "change", "difference"),
    [
        ("train_config.json", {"learning_rate": 0.1}, "learning_rate in train_config.json"),
        ("train_info.json", {"updates": 7}, "updates"),
        ("train_info.json", {"dataset": {"id": "other", "sha256": "cd" * 32}}, "dataset"),
    ],
)
def test_other_settings_are_not_other_seeds(hub, publish, outputs, file, change, difference, caplog):
    edit_json(outputs / "ball1" / "policy" / file, **change)
    if file == "train_info.json":
        entry = make_entry([1, 2], [3, 4], train_seed=1, **change)
        write_results(outputs / "ball1" / "evaluation" / "results.json", [entry])
    assert publish(outputs, "org", "--seed", 0)[0] == 0
    files = hub.store.get("models", "org/spi-ballcircle").files
    assert files["results.json"] == results_text([make_entry([600, 640], [4, 8])]).encode()
    assert f"its results are left out: {difference} differs" in caplog.text


def test_one_that_fails_does_not_stop_the_others(hub, publish, outputs):
    weights = outputs / "ball0" / "policy" / "noise_model" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    (outputs / "nameless" / "policy").mkdir(parents=True)
    (outputs / "nameless" / "policy" / "model_index.json").write_text("{")
    code, out, err = publish(outputs, "org", "--seed", 0)
    assert code == 1
    assert names(hub) == held(hub) == ["org/spi-antcircle", "org/spi-paper-ballcircle"]
    assert "2/3 org/spi-ballcircle: failed" in out
    assert "failed: org/spi-ballcircle: " in err
    assert str(weights.parent) in err
    assert f"failed: {outputs / 'nameless' / 'policy' / 'model_index.json'} is not complete JSON" in err
    assert "2 failed; the same command completes what is missing" in err

    weights.write_bytes(whole)
    shutil.rmtree(outputs / "nameless")
    before = commits(hub)
    code, out, err = publish(outputs, "org", "--seed", 0)
    assert (code, out.count(": unchanged"), out.count(": published")) == (0, 2, 1)
    assert commits(hub) == before | {"org/spi-ballcircle": 2}
    assert held(hub) == ["org/spi-antcircle", "org/spi-paper-ballcircle", "org/spi-ballcircle"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "POST", "spi-ballcircle/commit/"),
        Fault("drop before", "POST", "spi-ballcircle/commit/"),
        Fault("status", "POST", "/api/repos/create", skip=1, number=403),
        Fault("status", "POST", "/api/collections/.*/items"),
        Fault("status", "POST", "/api/collections$"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
def test_after_a_fault_the_same_command_completes_it(hub, publish, outputs, fault):
    hub.faults.set(fault)
    code, _, err = publish(outputs, "org", "--seed", 0)
    assert (code, len(hub.faults.happened)) == (1, 1)
    assert "1 failed; the same command completes what is missing" in err
    code, _, err = publish(outputs, "org", "--seed", 0)
    assert (code, "failed" in err) == (0, False)
    assert names(hub) == sorted(held(hub)) == [f"org/{name}" for name in NAMES]


def test_several_seeds_need_a_choice(hub, publish, outputs):
    code, _, err = publish(outputs, "org")
    assert (code, hub.log) == (2, [])
    assert "several policies would be published under the same name: spi-ballcircle" in err
    assert "ball0" in err
    assert "ball1" in err
    code, _, err = publish(outputs, "org", "--exclude", "ball1", "--exclude", "ant", "--no-collection")
    assert (code, names(hub), hub.store.collections) == (
        0,
        ["org/spi-ballcircle", "org/spi-paper-ballcircle"],
        {},
    )


def test_what_the_words_mean(hub, publish, outputs, monkeypatch, capsys):
    monkeypatch.chdir(outputs.parent)
    assert publish("--seed", 0, "org", "--dry-run")[0] == 0  # of outputs/
    assert publish("outputs", "--seed", 0, "org", "--dry-run")[0] == 0
    for words, message in (
        (("org/name",), "--all takes the name of a user or organization, got 'org/name'"),
        (("outputs",), "'outputs' is a folder here: spi publish --all outputs ORG"),
        (("nowhere", "org"), "nowhere: no such folder"),
        (("org", "--create-pr"), "--create-pr does not go with --all"),
        (("org", "--evaluation", "x"), "--evaluation does not go with --all"),
        (("org", "--no-collection", "--dataset", "org/data"), "--no-collection leaves nothing"),
        (("org", "--seed", "0", "--dataset", "org/none"), "dataset org/none: cannot go into a collection"),
    ):
        code, _, err = publish(*words)
        assert (code, message in err) == (2, True), err
    assert hub.store.repos == {}
    for words, message in (
        (["outputs"], "the following arguments are required: ORG/NAME"),
        (["--all"], "the following arguments are required: ORG"),
        (["outputs/ball0", "org/x", "--seed", "0"], "--seed goes only with --all"),
    ):
        assert main(["publish", *words]) == 2
        assert message in capsys.readouterr().err


def test_what_is_published_is_what_was_trained(hub, publish, outputs):
    publish(outputs, "org", "--seed", 0)
    info = json.loads(hub.store.get("models", "org/spi-ballcircle").files["train_info.json"])
    assert info == INFO
