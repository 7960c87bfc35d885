import argparse
import json
import math
import subprocess
import sys

import pytest

from spi_diffusers.config.algorithms import SPIConfig
from spi_diffusers.config.layers import (
    add_config_arguments,
    config_from_arguments,
    list_presets,
    make_train_config,
    restore_train_config,
)
from spi_diffusers.config.train import ConfigError, NetworkConfig, TrainConfig
from spi_diffusers.data.tasks import UnknownTaskError


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
        ("action_high", 2.0),  # a DSRL task's range is [-1, 1]
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(field, value):
    with pytest.raises(ConfigError, match=field):
        TrainConfig(task="ballcircle", **{field: value})


@pytest.mark.parametrize("sizes", [[], [0], [32, -1], 32, [True], ["32"]])
def test_bad_network_sizes_are_refused(sizes):
    with pytest.raises(ConfigError, match=r"network\.hidden_dims"):
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
    assert TrainConfig(dataset="data/mine.npz", action_high=2.0).output_dir == "outputs/mine-seed0"


def test_a_config_of_a_folder_trains_without_a_task_of_dsrls(tmp_path):
    settings = {"task": "robot", "dataset": str(tmp_path), "action_low": -30.0, "action_high": 30.0}
    config = make_train_config(settings)
    assert (config.task, config.output_dir) == ("robot", "outputs/robot-seed0")
    assert make_train_config(config.to_dict()) == config
    with pytest.raises(ConfigError, match="bc without a DSRL task needs the cost_limit"):
        make_train_config(settings | {"method": "bc"})
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
        ConfigError, match=r"preset paper.yaml has no effect: .*train_config.json comes after"
    ):
        parse("--preset", "paper", "--config", str(whole))
    part = tmp_path / "part.yaml"
    part.write_text("algorithm: {eta: 0.3, mu: 0.3, phi: 0.4}")
    assert not parse("--task", "ballcircle", "--preset", "paper", "--config", str(part)).algorithm.conditioned
    whole.write_text(json.dumps(parse("--task", "ballcircle", "--preset", "paper").to_dict()))
    assert parse("--preset", "paper", "--config", str(whole)).preset == "paper"  # a run started again


def test_layers_override_each_other_in_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: ballcircle\nlearning_rate: 2e-3\nseed: 5\nalgorithm: {gamma: 0.9}\n")
    assert TrainConfig(task="ballcircle").learning_rate == 3e-4  # the dataclass
    assert parse("--task", "swimmervelocity").learning_rate == 6e-4  # presets/default.yaml
    assert parse("--task", "swimmervelocity").updates == 20_000
    assert parse("--task", "ballcircle").updates == 15_000  # presets/ballcircle.yaml
    assert parse("--config", str(file)).learning_rate == 2e-3
    config = parse("--config", str(file), "--seed", "7", "--algorithm.eta", "0.4")
    assert (config.learning_rate, config.seed, config.algorithm.gamma) == (2e-3, 7, 0.9)
    assert (config.algorithm.eta, config.algorithm.ema_decay, config.updates) == (0.4, 0.99, 15_000)


def test_every_preset_can_be_used():
    assert {"default", "ballcircle", "paper", "paper-no-safety", "paper-no-reward"} <= set(list_presets())
    weights = {}
    for preset in list_presets():
        algorithm = parse("--task", "ballcircle", "--preset", preset).algorithm
        weights[preset] = (algorithm.conditioned, algorithm.eta, algorithm.mu, algorithm.phi)
    assert weights["ballcircle"] == (True, 0.3, None, None)
    assert weights["paper"] == (False, 0.5, 0.25, 0.25)
    assert weights["paper-no-safety"] == (False, 0.5, 0.5, 0.0)
    assert weights["paper-no-reward"] == (False, 0.5, 0.0, 0.5)


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
    assert parse("--task", "ballcircle", "--network.hidden_dims", "[8, 8]").network.hidden_dims == [8, 8]


def test_the_saved_config_is_read_back_the_same(tmp_path):
    config = parse("--task", "ballcircle", "--preset", "paper", "--mixed_precision", "no", "--threads", "2")
    file = tmp_path / "train_config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert parse("--config", str(file)) == config


def test_a_setting_that_did_not_exist_is_restored_at_its_default_not_the_presets():
    saved = make_train_config({"task": "halfcheetahvelocity"}).to_dict()
    assert restore_train_config(saved).to_dict() == saved
    assert (saved.pop("reserve_decay"), saved["algorithm"].pop("eta")) == (0.5, 0.7)
    restored = restore_train_config(saved)
    assert (restored.reserve_decay, restored.algorithm.eta) == (0.0, SPIConfig().eta)
    for change, complaint in ({"no_such": 1}, "no_such"), ({"updates": 0}, "updates must be"):
        with pytest.raises(ConfigError, match=complaint):
            restore_train_config(saved | change)


def test_yaml_reads_a_bare_no_as_false_and_we_do_not(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("task: ballcircle\nmixed_precision: no\n")
    assert parse("--config", str(file)).mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("foo: 1", r"unknown key 'foo'"),
        ("algorithm: {gama: 0.9}", r"unknown key 'algorithm.gama'; did you mean 'algorithm.gamma'"),
        ("algorithm: 3", r"'algorithm' must be a group"),
        ("algorithm: {cost_remap: {kind: other}}", r"'algorithm.cost_remap.kind' must be one of clip"),
        ("updates: many", r"'updates' must be a whole number, got 'many'"),
        ("updates: 1.5", r"'updates' must be a whole number"),
        ("updates: true", r"'updates' must be a whole number, got True"),
        ("updates: null", r"'updates' must be a whole number, got None"),
        ("learning_rate: fast", r"'learning_rate' must be a number"),
        ("learning_rate: [1, 2]", r"'learning_rate' must be a number"),
        ("resume: 3", r"'resume' must be true or false"),
        ("revision: 0123", r"'revision' must be text.*quotes"),
        ("network: {hidden_dims: 32}", r"'network.hidden_dims' must be a list"),
        ("- 1", r"must hold settings"),
        ("updates: [1, 2\nseed: 3", r"not valid YAML at line 2"),
        ("updates: -1", r"updates must be .* Set by: updates \(.*bad.yaml\)"),
        ("algorithm: {gamma: 1.5}", r"gamma must lie .* Set by: algorithm.gamma \(.*bad.yaml\)"),
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
    with pytest.raises(ConfigError, match=r"binary\.yaml: is not a text file"):
        parse("--config", str(tmp_path / "binary.yaml"))
    (tmp_path / "half.json").write_text('{"task": "ballcircle",')
    with pytest.raises(ConfigError, match=r"half\.json: is not valid JSON at line 1"):
        parse("--config", str(tmp_path / "half.json"))


def test_bad_options_are_refused_naming_the_key():
    with pytest.raises(ConfigError, match=r"command line: 'algorithm.eta' must be a number, got 'x'"):
        parse("--task", "ballcircle", "--algorithm.eta", "x")
    with pytest.raises(ConfigError, match=r"preset 'papr' does not exist; there are .*paper"):
        parse("--task", "ballcircle", "--preset", "papr")


def test_eta_mu_phi_that_do_not_add_up_say_where_each_was_set():
    with pytest.raises(ConfigError, match=r"eta \+ mu \+ phi must be 1") as caught:
        parse("--task", "ballcircle", "--preset", "paper", "--algorithm.eta", "0.3")
    assert "algorithm.eta (command line)" in str(caught.value)
    assert "algorithm.mu (preset paper.yaml)" in str(caught.value)


def test_overrides_may_be_nested_or_dotted():
    dotted = make_train_config({"task": "ballcircle", "algorithm.eta": 0.3, "algorithm.gamma": 0.5})
    assert dotted == make_train_config({"task": "ballcircle", "algorithm": {"eta": 0.3, "gamma": 0.5}})


def test_importing_and_making_a_config_needs_no_torch():
    code = (
        "import sys; from spi_diffusers.config.layers import make_train_config;"
        "make_train_config({'task': 'ballcircle'});"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
