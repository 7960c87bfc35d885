"""What is published of a policy folder, and what is refused."""

import ast
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import fails
from policy_factory import (
    BALL,
    COMPONENTS,
    ENTRIES,
    INFO,
    edit_json,
    make_assessment,
    make_entry,
    make_policy,
    make_run,
)

import spi_diffusers
from spi_diffusers.evaluation.assessment import Assessment
from spi_diffusers.evaluation.results import read_results, write_results
from spi_diffusers.files import PolicyError
from spi_diffusers.hub.policy_files import is_ours, read_policy_files
from spi_diffusers.hub.publish import assemble, copy_folder
from spi_diffusers.locks import held
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.pipelines.saving import pipeline_code

PACKAGE = Path(spi_diffusers.__file__).parent
WEIGHTS = "diffusion_pytorch_model.safetensors"
CODE = {
    "evaluation_critic": "evaluation_critic",
    "noise_model": "noise_model",
    "normalizer": "normalizer",
    "reward_critic": "critics",
    "safety_critic": "critics",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def data(content, path):
    return content[path] if isinstance(content[path], bytes) else content[path].read_bytes()


def test_weights_configs_code_and_evaluation_are_published_and_nothing_else(made):
    content = assemble(read_policy_files(made), "org/x")
    expected = {f"{name}/{file}" for name in COMPONENTS for file in ("config.json", WEIGHTS)}
    expected |= {f"{name}/{module}.py" for name, module in CODE.items()}
    expected |= {"model_index.json", "pipeline.py", "scheduler/scheduler_config.json", "README.md"}
    expected |= {"results.json", f".eval_results/{BALL.name}.yaml", "train_config.json", "train_info.json"}
    expected |= {"plots/limits.png", "replay.mp4"}
    assert set(content) == expected
    assert data(content, "replay.mp4") == b"a video"
    for name in COMPONENTS:
        assert data(content, f"{name}/{WEIGHTS}") == (made / "policy" / name / WEIGHTS).read_bytes()


def test_what_was_assessed_is_published_with_it(run, tmp_path):
    found = make_assessment(run, dataset={"id": "/home/me/logs.csv", "sha256": "0" * 64})
    folder = copy_folder(read_policy_files(run), "org/spi", tmp_path / "copy")
    copied = Assessment.read(folder / "assessment.json")
    assert copied == dataclasses.replace(found, dataset={"id": "logs.csv", "sha256": "0" * 64})
    assert is_ours("assessment.json", ())
    assert is_ours("certificate.json", ())
    assert read_policy_files(folder).assessment == copied
    load_pipeline(folder)


def test_without_an_evaluation_there_are_no_results(run):
    shutil.rmtree(run / "evaluation")
    content = assemble(read_policy_files(run), "org/x")
    assert not {path for path in content if path.startswith((".eval_results", "plots", "results", "replay"))}


def test_the_index_names_the_shipped_code(made):
    index = json.loads(data(assemble(read_policy_files(made), "org/x"), "model_index.json"))
    assert index["_class_name"] == ["pipeline", "SPIPolicyPipeline"]
    assert {name: index[name][0] for name in COMPONENTS} == CODE
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert (index["task"], index["gamma"]) == (BALL.name, 0.98)


def test_shipped_code_stands_alone(made):
    """Only these packages, by absolute imports; and one pipeline class, as diffusers wants it."""
    allowed = {"torch", "numpy", "diffusers", "huggingface_hub"}
    content = assemble(read_policy_files(made), "org/x")
    sources = {path: data(content, path) for path in content if path.endswith(".py")}
    assert sources["pipeline.py"] == pipeline_code()
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in __import__("sys").stdlib_module_names, (path, name)
    pipelines = [
        node.name
        for node in ast.walk(ast.parse(sources["pipeline.py"]))
        if isinstance(node, ast.ClassDef)
        and any(getattr(base, "id", "") == "DiffusionPipeline" for base in node.bases)
    ]
    assert pipelines == ["SPIPolicyPipeline"]


def test_a_published_folder_can_be_published_again_unchanged(made, tmp_path):
    first = assemble(read_policy_files(made), "org/x")
    before = os.umask(0o077)
    try:
        copy = copy_folder(read_policy_files(made), "org/x", tmp_path / "copy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o077 for path in (copy, *copy.rglob("*"))} == {0}, "the umask counts"
    again = assemble(read_policy_files(copy), "org/x")
    assert {path: data(again, path) for path in again} == {path: data(first, path) for path in first}


def test_results_with_another_margin_are_refused(run):
    edit_json(run / "policy" / "model_index.json", cost_margin=2.0)
    with pytest.raises(PolicyError, match=r"cost_margin is 1\.0 there, 2\.0 in model_index\.json\. Evaluate"):
        read_policy_files(run)
    entries = [make_entry([600, 640], [4, 8], cost_margin=2.0)]
    write_results(run / "evaluation" / "results.json", entries)
    assert read_policy_files(run).entries == tuple(entries)


def test_a_copy_is_never_written_over_something(made, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        copy_folder(read_policy_files(made), "org/x", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_copy_that_cannot_be_written_is_refused_before_the_hub_is_asked(made, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    words = ("publish", str(made), "org/x", "--output")
    assert "exists and is not empty" in fails(capsys, *words, str(tmp_path / "mine"))
    with held(tmp_path / "copy", "publication", beside=True):
        assert "copy: another publication (process" in fails(capsys, *words, str(tmp_path / "copy"))


@pytest.mark.parametrize("folder", ["/home/me/data/balls", "C:\\data\\balls", "~/balls"])
def test_folders_of_this_machine_are_not_published(run, folder):
    dataset = INFO["dataset"] | {"id": f"{folder} ({BALL.name})"}
    edit_json(run / "policy" / "train_info.json", dataset=dataset)
    edit_json(run / "policy" / "train_config.json", dataset=folder)
    write_results(run / "evaluation" / "results.json", [make_entry([1], [1], dataset=dataset)])
    content = assemble(read_policy_files(run), "org/x")
    for path in content:
        text = data(content, path)
        assert folder.encode() not in text, path
        assert str(run).encode() not in text, path
    assert json.loads(data(content, "train_config.json"))["dataset"] == "balls"
    assert json.loads(data(content, "train_info.json"))["dataset"]["id"] == f"balls ({BALL.name})"


def test_nor_is_where_a_policy_was_loaded_from(run):
    pipe = SPIPolicyPipeline.from_pretrained(str(run / "policy"))
    for component in filter(None, pipe.components.values()):  # it has no student
        component.register_to_config(_name_or_path=str(run))
    pipe.save_pretrained(run / "again")
    assert not [path for path in (run / "again").rglob("*.json") if str(run).encode() in path.read_bytes()]
    content = assemble(read_policy_files(run / "again"), "org/x")
    assert not [path for path in content if str(run).encode() in data(content, path)]


def test_results_are_found_where_the_demo_writes_them(run):
    (run / "evaluation" / "results.json").rename(run / "results.json")
    assert len(read_policy_files(run).entries) == len(ENTRIES)


def test_results_of_other_seeds_are_published_and_those_of_other_policies_are_not(run, caplog):
    other_seed = make_entry([500], [5], train_seed=3)
    other = make_entry([500], [5], algorithm="spi-paper")
    write_results(run / "evaluation" / "results.json", [*ENTRIES, other_seed, other])
    caplog.set_level("INFO", "spi_diffusers")
    files = read_policy_files(run)
    assert "1 entries about other policies are left out" in caplog.text
    assert {entry.train_seed for entry in files.entries} == {0, 3}
    assert {entry.algorithm for entry in files.entries} == {"spi"}


def damage(run, what):
    policy, results = run / "policy", run / "evaluation" / "results.json"
    if what == "no folder":
        shutil.rmtree(run)
    elif what == "no policy":
        (policy / "model_index.json").unlink()
    elif what == "no weights":
        (policy / "noise_model" / WEIGHTS).unlink()
    elif what == "cut weights":
        path = policy / "noise_model" / WEIGHTS
        path.write_bytes(path.read_bytes()[:-10])
    elif what == "foreign class":
        edit_json(policy / "model_index.json", noise_model=["my_code", "MyModel"])
    elif what == "path in a name":
        edit_json(policy / "model_index.json", **{"../x": ["critics", "TwinCritic"]})
    elif what == "path to code":
        edit_json(policy / "model_index.json", noise_model=["../x", "Unheard"])
    elif what == "more updates":
        edit_json(policy / "train_info.json", updates=2000)
    elif what == "other data":
        edit_json(policy / "train_info.json", dataset=INFO["dataset"] | {"sha256": "cd" * 32})
    elif what == "other seed":
        edit_json(policy / "train_info.json", train_seed=9)
    elif what == "no record":
        (policy / "train_info.json").unlink()
    elif what == "half a record":
        (policy / "train_info.json").write_text('{"algorithm": "spi"}')
    elif what == "half a config":
        (policy / "train_config.json").write_text('{"task"')
    elif what == "half the results":
        results.write_text(results.read_text()[:100])
    elif what == "two evaluations":
        write_results(policy / "results.json", read_results(results)[:1])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "run: no such folder"),
        ("no policy", r"run: holds no policy \(there is no model_index\.json\)"),
        ("no weights", rf"noise_model/{WEIGHTS} is missing"),
        ("cut weights", rf"noise_model/{WEIGHTS} is truncated"),
        ("foreign class", "'noise_model' is a MyModel of my_code, which this version does not know"),
        ("path in a name", r"model_index\.json: unknown field '\.\./x'"),
        ("path to code", r"'noise_model' names the library '\.\./x', which is not a valid"),
        ("more updates", "are of other weights: updates is 1000 there, 2000 in train_info.json"),
        ("other data", "are of other weights: dataset is 'abab"),
        ("other seed", r"holds no result of this policy \(spi on OfflineBallCircle-v0, training seed 9\)"),
        ("no record", "there is no train_info.json beside the policy"),
        ("half a record", "train_info.json: missing fields 'train_seed'"),
        ("half a config", r"train_config\.json is not complete JSON"),
        ("half the results", r"results\.json is not complete JSON"),
        ("two evaluations", "there are several evaluations, .* choose one with --evaluation"),
    ],
)
def test_what_is_wrong_is_named(run, what, message):
    damage(run, what)
    with pytest.raises((ValueError, OSError), match=message):
        read_policy_files(run)


def test_results_of_another_training_of_the_same_name_are_refused(run):
    write_results(run / "evaluation" / "results.json", [make_entry([600], [4], train_seconds=77.0)])
    with pytest.raises(ValueError, match=r"of other weights: train_seconds is 77\.0 there, 120\.0 in"):
        read_policy_files(run)


def test_results_of_a_policy_of_no_task_say_what_to_do(tmp_path):
    run = make_run(tmp_path / "run")
    policy = make_policy(task=None)
    policy.training_record = {"config": {}, "info": INFO}
    policy.save_pretrained(run / "policy")
    with pytest.raises(ValueError, match=r"trained for no task.*move this one away"):
        read_policy_files(run)


def test_an_evaluation_that_is_named_must_be_there(run):
    with pytest.raises(FileNotFoundError, match=r"there is no results\.json"):
        read_policy_files(run, run / "elsewhere")
    write_results(run / "policy" / "results.json", ENTRIES[:1])
    assert len(read_policy_files(run, run / "policy").entries) == 1


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("noise_model/diffusion_pytorch_model.bin", True),
        ("plots/training.png", True),
        ("plots/of_mine.png", False),
        (".eval_results/others.yaml", False),
        (".eval_results/OfflineBallCircle-v0.yaml", True),
        ("replay.mp4", True),
        ("LICENSE", False),
        (".gitattributes", False),
        ("docs/notes.md", False),
    ],
)
def test_old_files_that_publishing_made_are_removed(path, ours):
    assert is_ours(path, COMPONENTS) is ours
