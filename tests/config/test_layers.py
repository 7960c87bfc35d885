import argparse
import dataclasses
import json
import math
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from spi_diffusers.commands.train_options import add_config_arguments, config_from_arguments
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.algorithms import ALGORITHMS
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.config.train import NetworkConfig, TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.tasks import TASKS, UnknownTaskError


def parse(*arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_config_arguments(parser)
    return config_from_arguments(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("updates", 0),
        ("updates", 1.5),
        ("batch_size", -3),
        ("log_every", 0),
        ("checkpoint_every", True),
        ("keep_checkpoints", 0),
        ("threads", 0),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.inf),
        ("lr_schedule", "linear"),
        ("device", "abacus"),
        ("mixed_precision", "fp16"),
        ("mixed_precision", "fp8"),
        ("overlap", "maybe"),
        ("resume", "yes"),
        ("trackers", ["mlflow"]),
        ("trackers", ["wandb", "wandb"]),
        ("action_low", math.nan),
        ("max_episode_steps", 0),
        ("max_episode_steps", 100),  # BallCircle's episodes have 200
        ("action_high", 2.0),  # a DSRL task's range is [-1, 1]
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(field, value):
    with pytest.raises(ConfigError, match=field):
        TrainConfig(task="ballcircle", **{field: value})


@pytest.mark.parametrize("sizes", [[], [0], [32, -1], 32, [True], ["32"]])
def test_bad_network_sizes_are_refused(sizes):
    with pytest.raises(
        ConfigError,
        match=r"hidden_dims must be a list of at least one item, each a whole number of at least 1",
    ):
        NetworkConfig(hidden_dims=sizes)


def test_fp16_is_refused_with_the_reason_and_the_alternative():
    with pytest.raises(ConfigError, match=r"range.*bf16"):
        TrainConfig(task="ballcircle", mixed_precision="fp16")


def test_a_task_or_a_dataset_is_needed_and_the_task_must_exist():
    with pytest.raises(ConfigError, match="task or dataset"):
        TrainConfig()
    with pytest.raises(UnknownTaskError, match="ballcircle"):
        make_train_config({"task": "ballcirle"})
    assert TrainConfig(task="BallCircle").task == "OfflineBallCircle-v0"
    assert TrainConfig(dataset="data/mine.npz").output_dir == "outputs/mine-seed0"


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, 1.0, "action_low must lie below action_high, got 1.0 and 1.0"),
        (None, 1.0, "given together"),
        ([0.0, 2.0], [1.0, 2.0], "action_low must lie below"),
        ([0.0, 0.0], [1.0, 1.0, 1.0], "as many numbers"),
        ([0.0, 0.0], -1, "action_low must lie below"),
        ([], 1.0, "action_low must be a number or"),
        ("0", 1.0, "action_low must be a number or"),
        ([0.0, math.inf], 1.0, "action_low must be a .*number or"),
    ],
)
def test_a_range_of_actions_that_is_none(low, high, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(dataset="mine.csv", action_low=low, action_high=high)


@pytest.mark.parametrize("low", [0, [0, -2.5], (0.0, -2.5), np.array([0.0, -2.5], dtype=np.float32)])
def test_the_range_of_actions_has_one_number_or_one_for_each_dimension(low):
    config = make_train_config({"dataset": "mine.csv", "action_low": low, "action_high": np.float32(1)})
    assert config.action_low == (0 if isinstance(low, int) else [0, -2.5])
    assert config.action_high == 1
    assert make_train_config(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig(task="ballcircle", action_low=[-1, -1], action_high=1.0).action_high == 1


def test_the_range_of_actions_on_the_command_line():
    config = parse("--dataset", "mine.csv", "--action-low", "-1", "-2.5", "--action-high", "3")
    assert (config.action_low, config.action_high) == ([-1, -2.5], 3)
    config = parse("--dataset", "mine.csv", "--action-low", "-1", "--action-high", "[3, 4]")
    assert (config.action_low, config.action_high) == (-1, [3, 4])


def test_a_config_of_a_folder_trains_without_a_task_of_dsrls(tmp_path):
    settings = {"task": "robot", "dataset": str(tmp_path), "action_low": -30.0, "action_high": 30.0}
    config = make_train_config(settings)
    assert (config.task, config.output_dir) == ("robot", "outputs/robot-seed0")
    for name in ("../../x", "/x", "a/../../../x", "..\\x"):  # a run's folder stays in outputs/
        folder = Path(make_train_config({"task": name, "dataset": "org/data"}).output_dir)
        assert folder.parent == Path("outputs"), folder
    assert make_train_config(config.to_dict()) == config
    with pytest.raises(ConfigError, match="bcq-lag needs cost_limit: this data has no DSRL task"):
        make_train_config(settings | {"algorithm": "bcq-lag"})
    for algorithm in ("bc", "diffusion-ql"):  # the cost does not matter to them
        assert make_train_config(settings | {"algorithm": algorithm}).cost_limit is None
    with pytest.raises(UnknownTaskError, match="unknown task 'robot'"):
        make_train_config({"task": "robot", "dataset": "data/mine.npz"})


def test_cosine_schedule_by_hand():
    config = TrainConfig(task="ballcircle", updates=4, learning_rate=2.0, lr_schedule="cosine")
    half = 1.0 / math.sqrt(2.0)
    assert [config.learning_rate_at(k) for k in range(4)] == pytest.approx([2.0, 1.0 + half, 1.0, 1.0 - half])
    constant = TrainConfig(task="ballcircle", updates=4, learning_rate=2.0, lr_schedule="constant")
    assert [constant.learning_rate_at(k) for k in range(4)] == [2.0] * 4


def test_a_preset_that_a_complete_config_file_leaves_nothing_of_is_refused(tmp_path):
    whole = tmp_path / "train_config.json"
    whole.write_text(json.dumps(parse("--task", "ballcircle").to_dict()))
    with pytest.raises(
        ConfigError, match=r"preset spi-paper.yaml has no effect: .*train_config.json comes after"
    ):
        parse("--algorithm", "spi-paper", "--config", str(whole))
    part = tmp_path / "part.yaml"
    part.write_text("spi: {eta: 0.3, mu: 0.3, phi: 0.4}")
    assert not parse(
        "--task", "ballcircle", "--algorithm", "spi-paper", "--config", str(part)
    ).spi.conditioned
    whole.write_text(json.dumps(parse("--task", "ballcircle", "--algorithm", "spi-paper").to_dict()))
    assert (
        parse("--algorithm", "spi-paper", "--config", str(whole)).algorithm == "spi-paper"
    )  # a run started again


def test_layers_override_each_other_in_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: ballcircle\nlearning_rate: 2e-3\nseed: 5\nspi: {gamma: 0.9}\n")
    assert TrainConfig(task="ballcircle").spi.eta == 0.5  # the dataclass
    assert parse("--task", "ballcircle").spi.eta == 0.7  # presets/spi.yaml
    assert parse("--config", str(file)).learning_rate == 2e-3
    config = parse("--config", str(file), "--seed", "7", "--spi.eta", "0.4")
    assert (config.learning_rate, config.seed, config.spi.gamma) == (2e-3, 7, 0.9)
    assert (config.spi.eta, config.spi.ema_decay, config.updates) == (0.4, 0.99, 15_000)


def test_every_preset_is_of_an_algorithm_and_can_be_used():
    folder = resources.files("spi_diffusers.config") / "presets"
    assert {file.name.removesuffix(".yaml") for file in folder.iterdir()} == ALGORITHMS.keys()
    for algorithm in ALGORITHMS:
        config = parse("--task", "carrun", "--algorithm", algorithm)
        assert config.algorithm == algorithm
        assert config.output_dir == f"outputs/carrun{'' if algorithm == 'spi' else f'-{algorithm}'}-seed0"


def test_every_task_has_the_same_settings():
    first, *others = (parse("--task", task.short_name) for task in TASKS.values())
    for other in others:
        assert dataclasses.replace(other, task=first.task, output_dir=first.output_dir) == first
    weights = {
        name: (spi.conditioned, spi.eta, spi.mu, spi.phi)
        for name in ALGORITHMS
        if (spi := parse("--task", "ballcircle", "--algorithm", name).spi) and name.startswith("spi")
    }
    assert weights == {
        "spi": (True, 0.7, None, None),
        "spi-paper": (False, 0.5, 0.25, 0.25),
        "spi-paper-no-safety": (False, 0.5, 0.5, 0.0),
        "spi-paper-no-reward": (False, 0.5, 0.0, 0.5),
    }


def test_an_algorithm_is_called_what_it_is():
    with pytest.raises(
        ConfigError,
        match=r"algorithm=spi needs spi.conditioned=true; for other values use algorithm=spi-paper",
    ):
        parse(
            *("--task", "ballcircle", "--spi.conditioned", "false", "--spi.imitation-share", "1"),
            *("--spi.eta", "0.5", "--spi.mu", "0.25", "--spi.phi", "0.25"),
        )
    for algorithm, message in {
        "spi-paper-no-safety": "spi.phi=0.0",
        "spi-paper-no-reward": "spi.mu=0.0",
    }.items():
        with pytest.raises(ConfigError, match=f"needs {message}; for other values use algorithm=spi-paper"):
            parse("--task", "ballcircle", "--algorithm", algorithm, "--spi.mu", "0.25", "--spi.phi", "0.25")
    with pytest.raises(ConfigError, match=r"spi-paper needs spi.conditioned=false; .* use algorithm=spi\."):
        make_train_config(
            {"task": "ballcircle", "algorithm": "spi-paper", "spi.conditioned": True}
            | {"spi.mu": None, "spi.phi": None}
        )


def test_command_line_forms():
    config = parse(
        *("--task", "ballcircle", "--batch-size", "64", "--network.hidden-dims", "32", "16"),
        *("--trackers", "tensorboard", "wandb", "--resume", "--overlap", "false", "--revision", "0123"),
    )
    assert config.batch_size == 64
    assert config.network.hidden_dims == [32, 16]
    assert config.trackers == ["tensorboard", "wandb"]
    assert config.resume is True
    assert config.overlap is False
    assert config.revision == "0123"  # text, not the octal number 83
    assert parse("--task", "ballcircle", "--network.hidden-dims", "[8, 8]").network.hidden_dims == [8, 8]


def test_the_saved_config_is_read_back_the_same(tmp_path):
    config = parse(
        "--task", "ballcircle", "--algorithm", "spi-paper", "--mixed-precision", "no", "--threads", "2"
    )
    file = tmp_path / "train_config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert parse("--config", str(file)) == config


def test_a_setting_that_did_not_exist_is_restored_at_its_default_not_the_presets():
    saved = make_train_config({"task": "halfcheetahvelocity"}).to_dict()
    assert TrainConfig(**saved).to_dict() == saved
    assert (saved.pop("max_grad_norm"), saved["spi"].pop("eta")) == (10.0, 0.7)
    restored = TrainConfig(**saved)
    assert (restored.max_grad_norm, restored.spi.eta) == (10.0, SPIConfig().eta)
    for change, complaint in ({"no_such": 1}, "no_such"), ({"updates": 0}, "updates must be"):
        with pytest.raises(ConfigError, match=complaint):
            TrainConfig(**{**saved, **change})


def test_yaml_reads_a_bare_no_as_false_and_we_do_not(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("task: ballcircle\nmixed_precision: no\n")
    assert parse("--config", str(file)).mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("foo: 1", r"unknown setting foo"),
        ("spi: {gama: 0.9}", r"unknown setting spi.gama; did you mean spi.gamma\?"),
        ("eta: 0.9", r"unknown setting eta; did you mean spi.eta\?"),
        ("algorithm.eta: 0.9", r"unknown setting algorithm.eta; did you mean spi.eta\?"),
        ("updates: {many: 1}", r"unknown setting updates.many; did you mean updates\?"),
        ("spi: 3", r"spi must be a group of settings, got 3"),
        ("spi: {cost_remap: other}", r"spi.cost_remap must be one of clip"),
        ("updates: many", r"updates must be a whole number of at least 1, got 'many'"),
        ('updates: "10"', r"updates must be a whole number of at least 1, got '10'"),
        ("updates: 1.5", r"updates must be a whole number"),
        ("updates: true", r"updates must be a whole number of at least 1, got True"),
        ("updates: null", r"updates must be a whole number of at least 1, got None"),
        ("learning_rate: fast", r"learning_rate must be a positive number"),
        ("learning_rate: [1, 2]", r"learning_rate must be a positive number"),
        (f"learning_rate: {'x' * 1000}", r"learning_rate must be .{0,230}\.\.\. \("),
        ("device: cdua", r"device must be one of auto, .*; did you mean cuda\?"),
        ("resume: 3", r"resume must be true or false"),
        ("resume: yes", r"resume must be true or false, got 'yes'"),
        ("revision: 1230", r"revision must be text.*quotes"),
        ("network: {hidden_dims: 32}", r"network.hidden_dims must be a list"),
        ("- 1", r"must hold settings"),
        ("updates: [1, 2\nseed: 3", r"not valid YAML at line 2"),
        ("updates: -1", r"updates must be .*, got -1 \(.*bad.yaml\)"),
        ("spi: {gamma: 1.5}", r"spi.gamma must be a number in \[0, 1\), got 1.5 \(.*bad.yaml\)"),
    ],
)
def test_a_bad_file_is_refused_naming_file_and_key(tmp_path, text, complaint):
    file = tmp_path / "bad.yaml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse("--task", "ballcircle", "--config", str(file))
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        parse("--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: it is not in UTF-8: .* at byte"):
        parse("--config", str(tmp_path / "binary.yaml"))
    (tmp_path / "half.json").write_text('{"task": "ballcircle",')
    with pytest.raises(ConfigError, match=r"half\.json: cannot be read as JSON: .* line 1 column"):
        parse("--config", str(tmp_path / "half.json"))


def test_bad_options_are_refused_naming_the_key():
    with pytest.raises(ConfigError, match=r"spi.eta must be a number in \[0, 1\], got 'x' \(command line\)"):
        parse("--task", "ballcircle", "--spi.eta", "x")
    with pytest.raises(
        ConfigError,
        match=r"algorithm must be one of spi, .*, got 'spi-papr'; did you mean spi-paper\? \(command",
    ):
        parse("--task", "ballcircle", "--algorithm", "spi-papr")


def test_eta_mu_phi_that_do_not_add_up_say_where_each_was_set():
    with pytest.raises(ConfigError, match=r"eta \+ mu \+ phi must be 1") as caught:
        parse("--task", "ballcircle", "--algorithm", "spi-paper", "--spi.eta", "0.3")
    assert "spi.eta (command line)" in str(caught.value)
    assert "spi.mu (preset spi-paper.yaml)" in str(caught.value)


def test_overrides_may_be_nested_or_dotted():
    dotted = make_train_config({"task": "ballcircle", "spi.eta": 0.3, "spi.gamma": 0.5})
    assert dotted == make_train_config({"task": "ballcircle", "spi": {"eta": 0.3, "gamma": 0.5}})


def test_importing_and_making_a_config_needs_no_torch():
    code = (
        "import sys; from spi_diffusers.config.layers import make_train_config;"
        "make_train_config({'task': 'ballcircle'});"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 010", r"seed must be a whole number of at least 0, got '010'"),
        ("updates: 1:30", r"updates must be a whole number of at least 1, got '1:30'"),
        ("updates: 3\nseed: 1\nupdates: 4", r"line 4, column 1: updates is set twice"),
        ("spi: {eta: 0.1}\nspi: {gamma: 0.9}", "spi is set twice"),
        ("spi: {eta: 0.1}\nspi.eta: 0.2", r"settings\.yaml: spi\.eta is set twice"),
        ("spi: &a\n  next_action: *a", "aliases are not read"),
        (f"spi: {'[' * 5000}", "nested too deeply"),
    ],
)
def test_what_a_file_says_is_not_guessed(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(f"task: ballcircle\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        make_train_config(config_file=file)


def test_a_key_that_json_sets_twice_is_refused(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"task": "ballcircle", "seed": 1, "seed": 2}')
    with pytest.raises(ConfigError, match=r"settings\.json: cannot be read as JSON: seed is set twice"):
        make_train_config(config_file=file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "x" * 500}, "algorithm must be one of spi, "),
        ({"updates": 10**400}, r"updates must be a whole number of at least 1 and below 2\^63, got 1000"),
        ({"spi.num_train_timesteps": 10**9}, r"num_train_timesteps must be a whole number in \[1, 1000\]"),
        ({"updates": np.array([1, 2])}, r"updates must be a whole number of at least 1, got array"),
        ({"learning_rate": np.True_}, "learning_rate must be a positive number, got"),
    ],
)
def test_absurd_values_are_named_like_others(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_train_config({"task": "ballcircle", **settings})
