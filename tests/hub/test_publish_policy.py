"""Publishing policies, by the real client in this process against a real (loopback) server."""

import json
import re
import shutil

import pytest
from hub_faults import Fault
from hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN
from policy_factory import ENTRIES, edit_json, make_entry, make_policy, make_run

from spi_diffusers.cli import main
from spi_diffusers.evaluation.results import write_results
from spi_diffusers.hub.client import HubError
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import assemble, check_acts, plan_publish
from spi_diffusers.hub.upload import upload
from spi_diffusers.hub.upload_plan import UploadOptions
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.saving import seal_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def push(hub, run, *, token=TOKEN, **options):
    options = UploadOptions(token=token, **options)
    return upload(plan_publish(read_policy_files(run), "org/spi", options))


def published(hub):
    return hub.store.get("models", "org/spi")


def expected(run):
    content = assemble(read_policy_files(run), "org/spi")
    return {path: data if isinstance(data, bytes) else data.read_bytes() for path, data in content.items()}


def history(hub):
    """Titles of the commits of main, the newest first."""
    repo, titles = published(hub), []
    commit = repo.head
    while commit is not None:
        titles.append(commit.title)
        commit = repo.commits.get(commit.parent)
    return titles


def assert_published(hub, run):
    files = {path: data for path, data in published(hub).files.items() if path != ".gitattributes"}
    assert files == expected(run)


def test_one_commit_holds_everything(hub, run):
    result = push(hub, run, private=True, message="First policy")
    assert_published(hub, run)
    assert history(hub) == ["First policy", "initial commit"]
    assert (published(hub).private, result.commit) == (True, published(hub).head.oid)
    assert not any(path.endswith((".bin", ".pt", ".pkl")) for path in published(hub).files)


def test_nothing_changed_makes_no_commit(hub, run):
    push(hub, run)
    hub.log.clear()
    result = push(hub, run)
    assert (result.changed, hub.writes(), len(history(hub))) == (False, [], 2)


def test_new_results_change_only_what_they_are_about(hub, run):
    push(hub, run)
    write_results(run / "evaluation" / "results.json", [*ENTRIES, make_entry([1, 2], [3, 4], 5)])
    plan = plan_publish(read_policy_files(run), "org/spi", UploadOptions(token=TOKEN))
    changed = {file.path for file in plan.files if file.change != "unchanged"}
    assert changed == {"README.md", "results.json", ".eval_results/OfflineBallCircle-v0.yaml"}
    push(hub, run)
    assert_published(hub, run)


def test_what_publishing_made_before_goes_and_what_others_made_stays(hub, run):
    old = {
        "noise_model/diffusion_pytorch_model.bin": b"pickle",
        "replay.mp4": b"old",
        "plots/training.png": b"",
    }
    hub.store.put("models", "org/spi", {**old, "LICENSE": b"theirs", "docs/notes.md": b"theirs"})
    shutil.rmtree(run / "evaluation")
    push(hub, run)
    files = published(hub).files
    assert not old.keys() & files.keys()
    assert (files["LICENSE"], files["docs/notes.md"]) == (b"theirs", b"theirs")


def test_branches(hub, run):
    push(hub, run)
    edit_json(run / "policy" / "model_index.json", gamma=0.5)
    push(hub, run, branch="next")
    repo = published(hub)
    index = json.loads(repo.resolve("next").files["model_index.json"].content)
    assert index["gamma"] == 0.5
    assert json.loads(repo.files["model_index.json"])["gamma"] == 0.98


def test_a_pull_request_leaves_the_branch_alone(hub, run):
    push(hub, run)
    before = published(hub).head
    edit_json(run / "policy" / "model_index.json", gamma=0.5)
    result = push(hub, run, create_pr=True)
    assert (result.pull_request, published(hub).head) == ("refs/pr/1", before)
    again = push(hub, run, create_pr=True)
    assert (again.pull_request, again.changed) == ("refs/pr/1", False)
    with pytest.raises(ValueError, match="a pull request cannot be tagged"):
        push(hub, run, create_pr=True, tag="v1")


# ---- tags


def test_a_tag_names_what_was_published(hub, run):
    result = push(hub, run, tag="v1")
    assert published(hub).tags == {"v1": result.commit}
    assert push(hub, run, tag="v1").changed is False
    push(hub, run, tag="v1-again")
    assert published(hub).tags == {"v1": result.commit, "v1-again": result.commit}


def test_a_tag_is_never_moved(hub, run):
    first = push(hub, run, tag="v1")
    edit_json(run / "policy" / "model_index.json", gamma=0.5)
    with pytest.raises(HubError, match=r"the tag 'v1' exists already.*Nothing was uploaded"):
        push(hub, run, tag="v1")
    assert (published(hub).tags, published(hub).head.oid) == ({"v1": first.commit}, first.commit)


@pytest.mark.parametrize("kind", ["status", "drop before", "drop after"])
def test_a_tag_that_could_not_be_set_is_set_by_the_next_run(hub, run, kind):
    hub.faults.set(Fault(kind, "POST", "/tag/"))
    with pytest.raises(HubError, match=r"published as commit .*, but the tag 'v1' could not be set"):
        push(hub, run, tag="v1")
    assert_published(hub, run)
    push(hub, run, tag="v1")
    assert published(hub).tags == {"v1": published(hub).head.oid}
    assert len(history(hub)) == 2


# ---- refusals


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_nobody", "does not accept the access token"),
        (READ_TOKEN, "does not allow it"),
        (OTHER_TOKEN, "does not allow it"),
    ],
)
def test_tokens_that_may_not(hub, run, token, message):
    hub.store.put("models", "org/spi", {"README.md": b"before"})
    with pytest.raises(HubError, match=message):
        push(hub, run, token=token)
    assert published(hub).files == {"README.md": b"before"}


def test_somebody_else_changed_it_meanwhile(hub, run):
    push(hub, run)
    edit_json(run / "policy" / "model_index.json", gamma=0.5)
    plan = plan_publish(read_policy_files(run), "org/spi", UploadOptions(token=TOKEN))
    theirs = hub.store.put("models", "org/spi", published(hub).files | {"LICENSE": b"theirs"}).head
    with pytest.raises(HubError, match=r"nothing was published.*somebody else has changed the branch"):
        upload(plan)
    assert published(hub).head == theirs
    push(hub, run)
    assert published(hub).files["LICENSE"] == b"theirs"
    assert published(hub).head.parent == theirs.oid


def test_a_policy_that_cannot_act_is_not_published(run):
    from safetensors.torch import load_file, save_file

    path = run / "policy" / "noise_model" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["net.0.bias"][0] = float("nan")
    save_file(weights, path)
    seal_folder(run / "policy")
    with pytest.raises(ValueError, match="noise_model's weights are not finite"):
        check_acts(read_policy_files(run))


@pytest.mark.parametrize("token", [f" {TOKEN}\n", f"{TOKEN}\r\n"])
def test_blanks_round_a_token_do_not_matter(hub, run, token):
    assert push(hub, run, token=token).changed


def test_a_token_is_shown_nowhere(hub, run, capsys, monkeypatch):
    secret = "hf_SECRET1234567890"
    for token in (secret, f"{secret}\nx", f"{secret}é", f"Bearer {secret}"):
        words = ["publish", str(run), "org/spi", "--token", token, "--traceback"]
        assert main(words) == 2
        assert "SECRET" not in "".join(capsys.readouterr())
    assert "SECRET" not in repr(UploadOptions(token=secret))
    assert hub.store.repos == {}


def test_an_empty_token_is_none(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["publish", str(run), "org/spi", "--token", "", "--quiet"]) == 0
    assert published(hub).head.title == "Publish policy"


# ---- faults


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault("status", "GET", "/tree/", number=500), "published"),
        (Fault("status", "GET", "/api/models/org/spi$", times=9, number=503), "cannot be compared.*(503)"),
        (Fault("status", "POST", "/preupload/", times=9, number=500), "nothing was published"),
        (Fault("wrong bytes", "PUT", "/put/"), "nothing was published.*arrived damaged"),
        (Fault("drop within", "PUT", "/put/"), "published"),
        (
            Fault("status", "POST", "/commit/", times=9, number=429, headers={"Retry-After": "7"}),
            r"nothing was published.*wait 7 s \(too many requests\)",
        ),
        (Fault("drop before", "POST", "/commit/"), "nothing was published"),
        (Fault("drop within", "POST", "/commit/"), "nothing was published"),
        (Fault("drop after", "POST", "/commit/"), "published"),
        (Fault("slow", "POST", "/commit/", number=300), "published"),
        (Fault("status", "POST", "/paths-info/", times=9, number=500), "was made, but could not be verified"),
    ],
    ids=lambda value: f"{value.kind} {value.path} x{value.times}" if isinstance(value, Fault) else "",
)
def test_faults_publish_all_or_nothing_and_the_next_run_completes(hub, run, fault, outcome):
    hub.lfs_threshold = 2_000  # so that the small weights of the test are uploaded as real ones are
    hub.store.put("models", "org/spi", {"README.md": b"---\nlicense: mit\n---\nbefore\n"})
    hub.faults.set(fault)
    try:
        push(hub, run)
    except HubError as error:
        actual = str(error)
        if "was made" not in actual:
            assert history(hub) == ["set by the test", "initial commit"]
    else:
        actual = "published"
        assert_published(hub, run)
    assert hub.faults.happened
    assert re.search(outcome, actual), actual
    hub.faults.set()
    push(hub, run)
    assert_published(hub, run)
    assert history(hub) == ["Publish policy", "set by the test", "initial commit"]


def test_a_commit_that_holds_something_else_is_noticed(hub, run):
    hub.verifies_uploads, hub.lfs_threshold = False, 2_000  # a Hub that stores whatever arrives
    hub.faults.set(Fault("wrong bytes", "PUT", "/put/"))
    with pytest.raises(HubError, match=r"does not hold what was uploaded: .* differs in size or checksum"):
        push(hub, run)


def test_bad_command_lines_are_one_line(capsys, run):
    for arguments, message in (
        ([], "required: FOLDER, ORG/NAME"),
        ([str(run), "org/x", "--create-pr", "--revision", "y"], "goes without --tag and --revision"),
        (["/nowhere", "org/x"], "/nowhere: no such folder"),
        ([str(run), "spi"], "'spi' must have the form organization/name"),
        ([str(run), "org/x", "--evaluation", "/nowhere"], "there is no results.json"),
    ):
        try:
            code = main(["publish", *arguments])
        except SystemExit as error:
            code = error.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert (code, len(lines)) == (2, 1), lines
        assert message in lines[0]


# ---- from memory


def test_a_loaded_policy_is_published_with_its_record(hub, run):
    pipe = SPIPolicyPipeline.from_pretrained(str(run / "policy"))
    url = pipe.push_to_hub("org/spi", token=TOKEN, private=True, tag="v1")
    assert_published(hub, run)
    assert published(hub).private
    assert url == f"{hub.url}/org/spi/commit/{published(hub).tags['v1']}"
    assert pipe.push_to_hub("org/spi", token=TOKEN).endswith(published(hub).head.oid)
    assert len(history(hub)) == 2


@pytest.mark.parametrize("change", ["weights", "settings", "scheduler"])
def test_a_policy_that_was_changed_is_published_without_results(hub, run, change, caplog):
    pipe = SPIPolicyPipeline.from_pretrained(str(run / "policy"))
    if change == "weights":
        pipe.reward_critic.net[0].bias.data += 1.0
    elif change == "settings":
        pipe.register_to_config(gamma=0.5)
    else:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.push_to_hub("org/spi", token=TOKEN)
    assert "changed after its training" in caplog.text
    files = published(hub).files
    assert "results.json" not in files
    assert b"**This policy has not been evaluated.**" in files["README.md"]
    assert b"There is no record of how these weights were trained." in files["README.md"]


def test_saving_can_publish(hub, tmp_path):
    make_policy().save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="org/spi", token=TOKEN)
    assert (tmp_path / "saved" / "model_index.json").is_file()
    assert b"This policy has not been evaluated" in published(hub).files["README.md"]
    with pytest.raises(ValueError, match="needs repo_id"):
        make_policy().save_pretrained(tmp_path / "saved", push_to_hub=True)
    with pytest.raises(ValueError, match="would write a pickle"):
        make_policy().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()
