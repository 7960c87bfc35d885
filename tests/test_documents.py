"""JSON and YAML that were made to harm are refused in a moment, by one short line."""

import json
import time

import pytest

from spi_diffusers.config.layers import make_train_config
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.card import read_card
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.documents import MAX_DEPTH, DocumentError, parse_json, parse_yaml
from spi_diffusers.files import read_json
from spi_diffusers.training.metrics import MetricsLog, last_step, read_training_log

_LEVELS = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
LAUGHS = "\n".join(["a0: &a0 [lol, lol, lol]", *_LEVELS])
BAD = {
    "deep lists": ("[" * 100_000, "nested too deeply"),
    "deep objects": ('{"a":' * 30_000, "nested too deeply"),
    "deeper than ours": ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply"),
    "half": ('{"a": 1', "delimiter|expected"),
    "a key twice": ('{"a": 1, "b": 2, "a": 3}', "a is set twice"),
    "a long key twice": (f'{{"{"k" * 10_000}": 1, "{"k" * 10_000}": 3}}', "kkk is set twice|not valid YAML"),
    "thousands of digits": ("1" * 5000, "digits"),
    "half a surrogate pair": ('"\\ud800"', r"a character that is none: '\\ud800'"),
}
BAD_YAML = {
    "billion laughs": (LAUGHS, "aliases are not read"),
    "an alias of itself": ("&a [*a]", "aliases are not read"),
    "a timestamp": ("!!timestamp 2024-01-01", "tags are not read, such as tag:yaml.org,2002:timestamp"),
    "code": ("!!python/object/apply:os.system ['x']", "tags are not read"),
    "a long tag": ("!" + "x" * 100_000 + " 1", "tags are not read"),
    "binary": ("!!binary aGVsbG8=", "tags are not read"),
    "a set": ("!!set {a, b}", "tags are not read"),
    "a list as key": ("? [a]\n: 1", "a key must be text"),
    "deep blocks": ("- " * 150 + "1", "nested too deeply"),
    "zero bytes": ("a: \0", "special characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
    "a megabyte": ("a: b\n" * 200_000, "more than 200000 bytes"),
}


def check(parse, text, message):
    started = time.perf_counter()
    with pytest.raises(DocumentError, match=message) as caught:
        parse(text)
    assert time.perf_counter() - started < 20  # quadratic work would take minutes
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_json_made_to_harm(name):
    check(parse_json, *BAD[name])
    check(parse_json, BAD[name][0].encode(), BAD[name][1])


@pytest.mark.parametrize("name", [*BAD, *BAD_YAML])
def test_yaml_made_to_harm(name):
    check(parse_yaml, *(BAD | BAD_YAML)[name])


def test_json_that_is_right():
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(b"\xef\xbb\xbf" + json.dumps({"a": "grün \U0001f600"}).encode()) == {
        "a": "grün \U0001f600"
    }
    many = {str(number): number for number in range(100_000)}
    started = time.perf_counter()
    assert parse_json(json.dumps(many)) == many
    assert time.perf_counter() - started < 20


def test_yaml_that_is_right():
    text = "\ufeffa: 1e-3\nb: 010\nc: no\nd: 1:30\ne: ~\nf: 2024-01-01\ng: &x [1, .5]\nh: {<<: {i: 1}}"
    values = {"a": 1e-3, "b": "010", "c": "no", "d": "1:30", "e": None, "f": "2024-01-01"}
    assert parse_yaml(text) == values | {"g": [1, 0.5], "h": {"<<": {"i": 1}}}


# ---- where they are read


@pytest.mark.parametrize("name", BAD)
def test_files_of_json(tmp_path, name):
    path = tmp_path / "results.json"
    path.write_text(BAD[name][0])
    with pytest.raises(ValueError, match=r"results\.json is not complete JSON: ") as caught:
        read_json(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("name", BAD)
def test_config_files(tmp_path, name, suffix):
    path = tmp_path / f"config.{suffix}"
    path.write_text(BAD[name][0])
    with pytest.raises(ConfigError, match=rf"^.*config\.{suffix}: ") as caught:
        make_train_config({"task": "ballcircle"}, path)
    assert len(str(caught.value)) < 500


def test_a_config_file_with_a_byte_order_mark_and_one_that_is_too_large(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"seed": 7}')
    assert make_train_config({"task": "ballcircle"}, path).seed == 7
    path.write_text(json.dumps({"seed": 7, "output_dir": "x" * 300_000}))
    with pytest.raises(ConfigError, match=r"config\.json: .*: it has more than 200000 bytes"):
        make_train_config({"task": "ballcircle"}, path)


@pytest.mark.parametrize("name", ["deep lists", *sorted(BAD_YAML.keys() - {"two documents"})])
def test_headers_of_cards(tmp_path, name):
    text = (BAD | BAD_YAML)[name][0]
    path = tmp_path / "README.md"
    path.write_text(f"---\n{text}\n---\n# Data\n")
    with pytest.raises(DatasetError, match=r"README\.md: the YAML header cannot be read") as caught:
        read_card(path)
    assert len(str(caught.value)) < 500


def test_training_logs(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2.0}', "[" * 100_000]
    path.write_text("\n".join([*lines, ""]))
    assert last_step(path) == 0
    MetricsLog(path).truncate_after(5)
    assert "line 2 is not complete and is dropped" in caplog.text
    assert read_training_log(path)["loss"][1].tolist() == [2.0]
