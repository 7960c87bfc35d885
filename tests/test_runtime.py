"""Exported policies act without torch as the pipeline does, and refuse what cannot be meant."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_factory import exported, policy_with_margins
from pipeline_factory import make_pipeline

from spi_diffusers.pipelines import SafeController
from spi_diffusers.runtime import ExportedPolicy

ROOT = Path(__file__).parents[1]
ONE = np.zeros(3, np.float32)
TOLD = {"cost_budget": 50.0, "steps_left": 20}


@pytest.fixture(scope="module")
def pipeline():
    return policy_with_margins()


@pytest.fixture(scope="module")
def made(pipeline, tmp_path_factory):
    return exported(pipeline, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def policy(made):
    return ExportedPolicy(made)


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "onnx"))


def play(controller, steps=40, reported=True):
    """Actions and statuses of four environments side by side, of which some end early."""
    rng, actions, statuses = np.random.default_rng(0), [], []
    controller.reset()
    for number in range(steps):
        actions.append(controller.act(rng.normal(scale=1.5, size=(4, 3)).astype(np.float32)))
        statuses.append(controller.status.tolist())
        costs = rng.exponential(size=4)
        controller.observe(costs if reported else None, [False, number % 7 == 3, False, number == 20])
    return np.array(actions), statuses


@pytest.mark.parametrize("reported", [True, False])
def test_the_controller_does_the_same_on_either(pipeline, policy, reported):
    how = {"num_envs": 4, "autoreset": "next_step", "risk": 0.1}
    limits = [5.0, 50.0, 100.0, 400.0]
    ours, theirs = (each.controller(limits, **how) for each in (pipeline, policy))
    (actions, statuses), (expected, statuses_expected) = (
        play(theirs, reported=reported),
        play(ours, reported=reported),
    )
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    assert statuses == statuses_expected
    assert {"within", "tight", "overspent", "out of support"} <= {name for row in statuses for name in row}
    np.testing.assert_allclose(theirs.spent, ours.spent, rtol=1e-5)
    assert theirs.scale == ours.scale


def test_a_state_goes_from_one_to_the_other(pipeline, policy):
    ours, theirs = (SafeController(each, 50.0, num_envs=4) for each in (pipeline, policy))
    play(ours, 5, reported=True)
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    np.testing.assert_allclose(theirs.act(np.ones((4, 3))), ours.act(np.ones((4, 3))), rtol=1e-5, atol=1e-5)
    for controller in (ours, theirs):
        controller.observe(1.0)
    assert theirs.state_dict() == ours.state_dict()


def test_what_it_answers(pipeline, policy):
    output, expected = policy(ONE, **TOLD, risk=0.2), pipeline(ONE, **TOLD, risk=0.2)
    chosen = int(expected.chosen[0])
    assert output.actions.shape == (2,)
    assert output.safety_weight == pytest.approx(float(expected.safety_weights[0, chosen]))
    assert output.cost_bound == pytest.approx(float(expected.cost_bounds[0, chosen]), rel=1e-5)
    assert output.feasible.tolist() == expected.feasible.tolist()
    assert output.step_cost == pytest.approx(pipeline.step_costs(ONE, expected).item(), rel=1e-4)
    limit = policy([ONE, ONE], cost_limit=[60.0, 600.0])
    np.testing.assert_allclose(limit.actions, pipeline([ONE, ONE], cost_limit=[60.0, 600.0]).actions, 1e-5)
    np.testing.assert_array_equal(policy(ONE, **TOLD).actions, policy(ONE, **TOLD).actions)


@pytest.mark.parametrize(
    ("observation", "told", "message"),
    [
        (np.array([0.0, np.nan, 0.0]), TOLD, r"observation is NaN or infinite at index \[1\]"),
        (np.zeros((2, 4)), TOLD, r"shape \(2, 4\); this policy takes \(3,\) or \(batch, 3\)"),
        ({"state": 1}, TOLD, "observation is a dict"),
        (ONE, {}, "needs cost_limit, or cost_budget with steps_left"),
        (ONE, {"cost_budget": 5.0}, "cost_budget and steps_left .* must be given together"),
        (ONE, {**TOLD, "cost_budget": np.nan}, "cost_budget is NaN or infinite"),
        (ONE, {**TOLD, "cost_budget": [1.0, 2.0]}, "cost_budget has shape"),
        (ONE, {**TOLD, "steps_left": 0}, "steps_left must be at least 1"),
        (ONE, {"cost_limit": -1.0}, "cost_limit must not be negative"),
        (ONE, {**TOLD, "risk": 1.0}, "risk must be a finite number"),
        (ONE, {**TOLD, "extraction": "reward"}, "This graph holds extraction 'safe' only, got 'reward'"),
    ],
)
def test_what_cannot_be_meant_is_refused(policy, observation, told, message):
    with pytest.raises(ValueError, match=message):
        policy(observation, **told)


def test_inputs_that_are_missing_are_refused(policy):
    with pytest.raises(ValueError, match="The graph takes observation, cost_budget, steps_left, risk; got"):
        policy.run({"observation": ONE[None]})
    with pytest.raises(ValueError, match="leave out num_inference_steps, generator and fast"):
        policy.controller(20.0, generator=0)


def test_a_graph_without_a_limit_refuses_one(tmp_path):
    reward = ExportedPolicy(exported(make_pipeline(conditioned=False), tmp_path))
    for call in (lambda: reward.controller(20.0), lambda: reward(ONE, cost_limit=20.0)):
        with pytest.raises(ValueError, match="holds extraction 'reward', which takes no limit"):
            call()


def edited(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_contract_of_another_graph_is_refused(copy):
    graph = copy / "policy.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"is not the graph that policy\.json is about, by its SHA-256"):
        ExportedPolicy(copy)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "policy.json").unlink(), FileNotFoundError, "policy.json: is missing"),
        (lambda folder: (folder / "policy.onnx").unlink(), FileNotFoundError, "policy.onnx: is missing"),
        (lambda folder: (folder / "policy.json").write_text("{"), ValueError, "policy.json"),
        (lambda folder: edited(folder, format_version=9), ValueError, "format_version must be 1, got 9"),
        (lambda folder: edited(folder, graph=None), ValueError, "is no contract of an exported policy"),
        (lambda folder: edited(folder, inputs={}), ValueError, "is no contract of an exported policy"),
        (
            lambda folder: edited(folder, outputs={"action": {"low": [0], "high": [1]}}),
            ValueError,
            "does not name the",
        ),
    ],
)
def test_a_damaged_export_is_refused(copy, damage, error, message):
    damage(copy)
    with pytest.raises(error, match=message):
        ExportedPolicy(copy)


@pytest.mark.slow
def test_the_example_in_javascript_acts_alike(made, policy, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    # Its binaries for the CPU are in the package; the script would fetch those for GPUs.
    install = ["npm", "install", "--ignore-scripts", "onnxruntime-node"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)
    shutil.copy(ROOT / "docs" / "examples" / "act.js", tmp_path)
    steps = [{"observation": [0.0, 0.5, -0.5]}, {"observation": [1.0, 0.0, 0.0], "cost": 2.5}]
    words = {"cwd": tmp_path, "capture_output": True, "text": True}
    text = "\n".join(map(json.dumps, steps))
    done = subprocess.run(["node", "act.js", made, "60"], input=text, check=True, **words)
    for line, step, spent, left in zip(done.stdout.splitlines(), steps, (0.0, 2.5), (100, 99), strict=True):
        answer = json.loads(line)
        expected = policy(step["observation"], cost_budget=60.0 - spent, steps_left=left)
        np.testing.assert_allclose(answer["action"], expected.actions, rtol=1e-5, atol=1e-5)
        assert (answer["spent"], answer["fits"]) == (spent, bool(expected.feasible.any()))
    done = subprocess.run(["node", "act.js", made, "60"], input='{"observation": [null, 0, 0]}', **words)
    assert (done.returncode, done.stderr) == (
        1,
        "error: each line needs 3 finite numbers as observation, and a cost of at least 0\n",
    )


@pytest.mark.slow
def test_an_environment_without_torch_plays_an_episode(made, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = ["numpy", "onnxruntime"]
    constraints = ["-c", ROOT / "constraints.txt"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages, *constraints], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", ROOT], check=True)
    code = f"""
import importlib.util, numpy as np
from spi_diffusers.runtime import ExportedPolicy
assert importlib.util.find_spec("torch") is None
controller = ExportedPolicy({str(made)!r}).controller(cost_limit=50.0)
controller.reset()
rng = np.random.default_rng(0)
for step in range(100):
    action = controller.act(rng.standard_normal(3))
    controller.observe(rng.exponential(), step == 99)
print(action.shape, controller.steps, controller.finished)
"""
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(2,) 100 1\n"
