"""Folders made to harm: refused with an error that names the file, quickly and without using memory."""

import json
import resource
import struct
import time

import pytest

from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.saving import seal_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"
HUGE = 10**12


def refused(folder, message, **options):
    """Loading fails in a moment and without memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises((ValueError, OSError), match=message):
        SPIPolicyPipeline.from_pretrained(str(folder), **options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert time.perf_counter() - started < 5


def edit(folder, component, **changes):
    path = folder / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_untouched_folder_loads(folder):
    SPIPolicyPipeline.from_pretrained(str(folder))


def header_length(content, length):
    return struct.pack("<Q", length) + content[8:]


def changed_header(content, change):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    change(header, first)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


LIES = {
    "header longer than memory": lambda content: header_length(content, 2**62),
    "header longer than the file": lambda content: header_length(content, 900_000),
    "header of nothing": lambda content: header_length(content, 0),
    "data beyond the end": lambda content: changed_header(
        content, lambda header, name: header[name].update(data_offsets=[0, HUGE])
    ),
    "data that overlaps": lambda content: changed_header(
        content, lambda header, name: header[name].update(data_offsets=[4, 8])
    ),
    "shape beyond the data": lambda content: changed_header(
        content, lambda header, name: header[name].update(shape=[HUGE, HUGE])
    ),
    "shape that overflows": lambda content: changed_header(
        content, lambda header, name: header[name].update(shape=[2**63, 2**63])
    ),
    "negative shape": lambda content: changed_header(
        content, lambda header, name: header[name].update(shape=[-1, 4])
    ),
    "unknown type": lambda content: changed_header(
        content, lambda header, name: header[name].update(dtype="Q99")
    ),
    "empty weight of any size": lambda content: changed_header(
        content,
        lambda header, name: header.update(x={"dtype": "F32", "shape": [0, HUGE], "data_offsets": [0, 0]}),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(folder, lie):
    path = folder / "noise_model" / WEIGHTS
    path.write_bytes(LIES[lie](path.read_bytes()))
    refused(folder, f"noise_model/{WEIGHTS}")


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("noise_model", {"hidden_dims": [HUGE]}),
        ("noise_model", {"hidden_dims": [16] * 100_000}),
        ("noise_model", {"action_dim": HUGE}),
        ("noise_model", {"observation_dim": HUGE}),
        ("noise_model", {"time_embed_dim": HUGE}),
        ("reward_critic", {"action_dim": HUGE}),
        ("safety_critic", {"hidden_dims": [16, HUGE]}),
        ("normalizer", {"observation_dim": HUGE}),
        ("evaluation_critic", {"hidden_dims": [HUGE]}),
    ],
)
def test_configs_with_absurd_sizes(folder, component, changes):
    edit(folder, component, **changes)
    refused(folder, f"{component}/{WEIGHTS} does not fit its config.json: {next(iter(changes))}")


@pytest.mark.parametrize("steps", [HUGE, 100_000, 0, -1, "5", 2.5, True, None])
def test_schedulers_with_absurd_lengths(folder, steps):
    edit(folder, "scheduler", num_train_timesteps=steps)
    message = r"scheduler/scheduler_config\.json: num_train_timesteps must be a whole number in \[1, 1000\]"
    refused(folder, message)


@pytest.mark.parametrize("name", ["model_index.json", "noise_model/config.json"])
@pytest.mark.parametrize("content", ["[" * 900_000, '{"a": "' + "x" * 2_000_000 + '"}'], ids=["deep", "long"])
def test_json_that_is_deep_or_long(folder, name, content):
    (folder / name).write_text(content)
    refused(folder, name)


# ---- made by another version


@pytest.mark.parametrize("component", ["noise_model", "reward_critic", "normalizer", "evaluation_critic"])
def test_an_unknown_setting_is_named(folder, component):
    edit(folder, component, dropout=0.1)
    refused(
        folder, rf"{component}/config\.json: unknown field 'dropout'.*newer one saved the policy, upgrade"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"risk": 0.1}, r"model_index\.json: unknown field 'risk'.*upgrade"),
        ({"value_critic": ["critics", "TwinCritic"]}, r"unknown field 'value_critic'.*upgrade"),
        (
            {"format_version": 3, "units": 0.1},
            "has format version 3, but this code reads version 2: upgrade",
        ),
        ({"format_version": "new"}, "format_version must be a whole number of at least 1, got 'new'"),
        ({"format_version": 0}, "format_version must be a whole number of at least 1, got 0"),
    ],
)
def test_an_index_of_another_version_is_named(folder, changes, message):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, message)


def test_the_version_of_diffusers_does_not_matter(folder):
    for component in ("noise_model", "normalizer", "scheduler"):
        edit(folder, component, _diffusers_version="99.0.0", _something="internal")
    seal_folder(folder)
    SPIPolicyPipeline.from_pretrained(str(folder))


@pytest.mark.parametrize("trust", [False, True])
def test_a_library_must_be_a_plain_name(folder, trust):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_model": ["../../evil", "Unheard"]}))
    refused(folder, "is not a valid module name", trust_remote_code=trust)
