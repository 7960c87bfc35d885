"""`spi data push`, and training from what it published, by fresh processes against a (loopback) Hub."""

import json

import pytest
import torch
from hub_client import run_client
from hub_server import HubServer
from training_factory import newest_checkpoint

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.writing import write_parquet_dataset

# One process runs a list of commands: importing torch and datasets takes seconds.
CLIENT = """
import contextlib, io, json, os, sys
from spi_diffusers.cli import main
answers, token = [], os.environ["HF_TOKEN"]
for arguments in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = "" if arguments[0] == "without-token" else token
    arguments = [word for word in arguments if word != "without-token"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
    answers.append([code, out.getvalue(), err.getvalue()])
print("ANSWERS" + json.dumps(answers))
"""


def run(environment, folder, *commands):
    answers, _ = run_client(CLIENT, environment, folder, json.dumps(commands))
    return answers


def test_push_then_train_from_it(tmp_path):
    data = load_transitions(None, "ballcircle").select_episodes(torch.arange(6))
    write_parquet_dataset(data, tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    small = ["--updates", "3", "--network.hidden_dims", "16", "16", "--threads", "1"]
    train = ["train", "--task", "ballcircle", "--dataset", "org/set", "--quiet", *small]
    push = ["data", "push", "set", "org/set"]
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        dry, private, again, refused, from_hub, from_folder, wrong = run(
            environment,
            tmp_path,
            [*push, "--dry-run"],
            [*push, "--private", "--message", "First data"],
            push,
            ["without-token", *train, "--output_dir", "x"],  # before anything is cached
            [*train, "--output_dir", "hub", "--device", "cpu"],
            [*train, "--dataset", "set", "--output_dir", "folder", "--device", "cpu"],
            [*push, "--token", "hf_nobody", "--quiet"],
        )
        assert dry[0] == 0, dry[2]
        assert "org/set (dataset; will be made)" in dry[1]
        assert "OfflineBallCircle-v0/train-00000-of-00001.parquet" in dry[1]
        assert "Not published, as no part of the dataset: notes.txt" in dry[1]
        assert 'load_transitions("org/set", task="OfflineBallCircle-v0")' in dry[1]
        assert "Dry run: nothing was changed on the Hub." in dry[1]
        assert private[0] == 0, private[2]
        repo = hub.store.get("datasets", "org/set")
        assert (repo.private, repo.head.title, len(repo.commits)) == (True, "First data", 2)
        assert f"{hub.url}/datasets/org/set/commit/{repo.head.oid}" in private[1]
        assert "Published: 5 new; " in private[1]
        assert "verified by checksum" in private[1]
        assert "Next: spi train --task OfflineBallCircle-v0 --dataset org/set" in private[1]
        assert again[0] == 0
        assert "Nothing to do: org/set holds exactly these files" in again[1]
        assert from_hub[0] == 0, from_hub[2]
        assert from_folder[0] == 0, from_folder[2]
        assert wrong[0] == 2
        assert wrong[2].count("\n") == 1
        assert "spi data push: error: org/set: cannot be compared with the Hub" in wrong[2]
        # Without the token, the private data cannot be read.
        assert refused[0] == 2
        assert "org/set: cannot be loaded from the Hub" in refused[2]
    first, second = newest_checkpoint(tmp_path / "hub"), newest_checkpoint(tmp_path / "folder")
    assert first.state["dataset_sha256"] == second.state["dataset_sha256"] == data.sha256
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    info = json.loads((tmp_path / "hub" / "policy" / "train_info.json").read_text())
    assert info["dataset"]["id"] == f"org/set@{repo.head.oid} (OfflineBallCircle-v0)"


def test_bad_command_lines_are_one_line(capsys, tmp_path):
    for arguments, message in (
        ([], "required: FOLDER, ORG/NAME"),
        (["x", "org/x", "--create-pr", "--revision", "y"], "not allowed with"),
        ([str(tmp_path), "org/x"], "is not a dataset folder"),
        (["/nowhere", "org/x"], "/nowhere: is no folder"),
    ):
        try:
            code = main(["data", "push", *arguments])
        except SystemExit as error:
            code = error.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert (code, len(lines)) == (2, 1), lines
        assert message in lines[0]


def test_help_teaches_push(capsys):
    with pytest.raises(SystemExit):
        main(["data", "push", "--help"])
    assert "spi data push datasets/mine org/mine --dry-run" in capsys.readouterr().out
