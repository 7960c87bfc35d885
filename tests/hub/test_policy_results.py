"""Results read from folders and from a real (loopback) Hub; compare and leaderboard on them."""

import json

import pytest
from hub_faults import Fault
from hub_server import TOKEN
from policy_factory import BALL, ENTRIES, make_certificate, make_entry, make_run

from spi_diffusers.cli import main
from spi_diffusers.evaluation.entries import DivergedRun
from spi_diffusers.evaluation.results import results_text, write_results
from spi_diffusers.hub.client import HubError
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder
from spi_diffusers.hub.results import find_policies, read_policy_results

CARD = f"---\ntags:\n- {BALL.name}\n---\n".encode()
BETTER = (make_entry([700, 720], [5, 7], 10, algorithm="better"),)


@pytest.fixture
def hub(hub):
    """A Hub with three policies, one of which was never evaluated."""
    for name, entries in (("plain", ENTRIES), ("better", BETTER), ("silent", ())):
        files = {"README.md": CARD}
        if entries:
            files["results.json"] = results_text(entries).encode()
        hub.store.put("models", f"org/{name}", files)
    hub.store.put("models", "org/elsewhere", {"README.md": b"---\ntags:\n- other\n---\n"})
    return hub


def test_a_file_a_run_a_policy_and_an_evaluation(tmp_path):
    write_results(tmp_path / "run" / "evaluation" / "results.json", ENTRIES)
    (tmp_path / "run" / "policy").mkdir()
    for place in ("run", "run/policy", "run/evaluation", "run/evaluation/results.json"):
        assert len(read_policy_results(str(tmp_path / place))) == len(ENTRIES)
    write_results(tmp_path / "demo" / "results.json", ENTRIES)  # as `make demo` writes it
    (tmp_path / "demo" / "policy").mkdir()
    assert len(read_policy_results(str(tmp_path / "demo" / "policy"))) == len(ENTRIES)


def test_a_certificate_is_read_with_the_results_of_its_policy(hub, tmp_path, capsys):
    run = make_run(tmp_path / "run", entries=[make_entry([600, 640], [4, 8], 10, risk=0.05)])
    found = make_certificate(run)
    copy_folder(read_policy_files(run), "org/run", tmp_path / "copy")
    files = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir() if path.is_file()}
    hub.store.put("models", "org/certified", files)
    for place in (run, run / "policy", tmp_path / "copy", "org/certified"):
        assert read_policy_results(str(place)).certificate == found
    assert read_policy_results(str(run / "evaluation" / "results.json")).certificate is None
    assert read_policy_results("org/plain").certificate is None
    assert main(["leaderboard", "ballcircle", "--author", "org", "--cost-limit", "10"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "org/certified" in line]
    assert "100%  4.7% (95%)" in line


def test_a_certificate_of_other_weights_is_left_out_of_comparisons(tmp_path, capsys, caplog):
    run = make_run(tmp_path / "run", entries=[make_entry([600, 640], [4, 8], 10, risk=0.05)])
    make_certificate(run, weights_sha256="0" * 64)
    assert main(["compare", str(run)]) == 0
    assert "(95%)" not in capsys.readouterr().out
    assert "certificate.json: is of other weights, and is left out" in caplog.text


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no results\.json"):
        read_policy_results(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_policy_results(str(tmp_path / "nothing"))


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ball-seed0").mkdir(parents=True)
    for name, hint in (("runs/bal-seed0", "; did you mean runs/ball-seed0?"), ("outputs/a", "")):
        with pytest.raises(FileNotFoundError) as caught:
            read_policy_results(name)
        assert str(caught.value) == f"{name}: no such folder{hint}"
    assert hub.log == []


def test_from_the_hub(hub):
    assert read_policy_results("org/plain") == sorted(ENTRIES, key=lambda entry: entry.key)
    with pytest.raises(HubError, match=r"org/silent: there is no results\.json"):
        read_policy_results("org/silent")
    with pytest.raises(HubError, match="org/nothing: no such folder, and its results cannot be read from"):
        read_policy_results("org/nothing", token=TOKEN)


def test_all_of_an_author_and_of_a_collection(hub):
    found, unreadable = find_policies(BALL, author="org")
    assert list(found) == ["org/better", "org/plain"]
    assert list(unreadable) == ["org/silent"]
    item = {"_id": "1", "id": "org/plain", "type": "model", "position": 0}
    hub.store.collections["org/safe-1"] = {
        "slug": "org/safe-1",
        "title": "safe",
        "owner": {"name": "org"},
        "items": [item],
        "lastUpdated": "2026-01-01T00:00:00.000Z",
        "position": 0,
        "private": False,
        "theme": "blue",
        "upvotes": 0,
    }
    assert list(find_policies(BALL, collection="org/safe-1")[0]) == ["org/plain"]
    with pytest.raises(HubError, match="collection org/none: cannot be listed"):
        find_policies(BALL, collection="org/none")


def test_a_hub_that_cannot_be_reached_is_not_taken_for_missing_results(hub):
    hub.faults.set(Fault("status", "HEAD", "/resolve/", times=99, number=500))
    with pytest.raises(HubError, match="org/plain: no such folder, and its results cannot be read"):
        read_policy_results("org/plain")


def test_leaderboard_ranks_and_says_what_it_left_out(hub, capsys):
    assert main(["leaderboard", "ballcircle", "--author", "org", "--cost-limit", "10", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [(row["rank"], row["policy"]) for row in json.loads(out)] == [(1, "org/better"), (2, "org/plain")]
    assert "left out: org/silent" in err
    assert main(["leaderboard", "carrun", "--author", "org"]) == 2
    assert "no policy with results for OfflineCarRun-v0" in capsys.readouterr().err


def test_leaderboard_and_compare_take_limits_of_several_costs(hub, capsys):
    two = make_entry([600, 640], [[4, 250], [8, 290]], (20.0, 300.0))
    hub.store.put("models", "org/two", {"README.md": CARD, "results.json": results_text([two]).encode()})
    for command in (["leaderboard", "ballcircle", "--author", "org"], ["compare", "org/plain", "org/two"]):
        main([*command, "--cost-limit", "20,300", "10", "--json"])
        found = [(row["cost_limit"], row["policy"]) for row in json.loads(capsys.readouterr().out)]
        assert ([20.0, 300.0], "org/two") in found
        assert (10.0, "org/plain") in found
        main([*command, "--cost-limit", "20,300"])
        assert " 20, 300 " in capsys.readouterr().out


def test_compare_takes_folders_and_the_hub(hub, tmp_path, capsys):
    write_results(tmp_path / "results.json", BETTER)
    arguments = ["compare", str(tmp_path), "org/plain", "--best", "--markdown", "--cost-limit", "10"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"| 1 | {tmp_path} |" in out
    assert "| 2 | org/plain |" in out


def test_compare_refuses_a_broken_file(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"format_version": 1, "entr')
    assert main(["compare", str(tmp_path)]) == 2
    assert str(tmp_path / "results.json") in capsys.readouterr().err


def test_what_was_named_and_is_not_in_the_table_is_said(tmp_path, capsys):
    lost = DivergedRun(BALL.name, "spi", None, 7, "nan")
    write_results(tmp_path / "a.json", ENTRIES, [lost])
    write_results(tmp_path / "b.json", [make_entry([700], [5], 20)])
    names = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main(["compare", *names, "--cost-limit", "10", "99", "--markdown"]) == 0
    notes = capsys.readouterr().err
    assert f"{names[0]}: has no results for a cost limit of 99." in notes
    assert f"{names[1]}: has no results that were asked for" in notes
    assert "training seed 7 of spi on OfflineBallCircle-v0 diverged" in notes


@pytest.mark.parametrize("where", [["--author", "org"], ["--collection", "org/all-65f0c0ffee"]])
def test_a_hub_that_is_not_there_is_one_line(monkeypatch, capsys, where):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["leaderboard", "ballcircle", *where]) == 2
    error = capsys.readouterr().err
    assert "cannot be listed" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_a_policy_that_is_not_on_the_hub_is_one_line(hub, capsys, command):
    assert main([command, "org/nothing"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "org/nothing" in error
    assert "http" not in error
