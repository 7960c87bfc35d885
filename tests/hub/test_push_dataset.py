"""Publishing dataset folders, by the real client in this process against a real (loopback) server."""

import json
import shutil

import numpy as np
import pytest
from dataset_pushes import BALL, CAR_RUN, assert_published, published, push, write
from hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.hub.client import HubError
from spi_diffusers.hub.datasets import find_files, plan_push, published_card
from spi_diffusers.hub.upload import upload
from spi_diffusers.hub.upload_plan import UploadOptions, plan_upload


def test_one_commit_holds_everything(hub, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden").write_text("mine")
    files = find_files(folder)
    assert files.left_out == ("notes.txt",)
    result = push(hub, folder, check=True)
    assert result.changed
    repo = published(hub)
    assert result.commit == repo.head.oid
    assert result.url == f"{hub.url}/datasets/org/set/commit/{repo.head.oid}"
    assert repo.head.title == "Transitions of OfflineBallCircle-v0, OfflineCarRun-v0"
    assert repo.commits[repo.head.parent].title == "initial commit"
    (folder / "notes.txt").unlink()
    (folder / ".hidden").unlink()
    assert_published(hub, folder)
    assert b'load_transitions("org/set", task="OfflineBallCircle-v0")' in repo.files["README.md"]
    assert b'datasets.load_dataset("org/set", "OfflineBallCircle-v0"' in repo.files["README.md"]


def test_pushing_again_makes_no_commit_and_sends_nothing(hub, folder):
    first = push(hub, folder)
    hub.log.clear()
    again = push(hub, folder)
    assert not again.changed
    assert again.commit == first.commit == published(hub).head.oid
    assert hub.writes() == []


def test_only_what_changed_is_sent_and_stale_rows_go(hub, folder):
    push(hub, folder)
    stale = f"{BALL.name}/train-00001-of-00002.parquet"
    repo = published(hub)
    hub.store.put("datasets", "org/set", repo.files | {stale: b"old rows", "LICENSE": b"theirs"})
    write(folder, CAR_RUN, seed=1, overwrite=True)
    hub.log.clear()
    result = push(hub, folder)
    assert [f.path for f in result.plan.files if f.change == "changed"] == [
        "OfflineCarRun-v0/cost_return.png",
        "OfflineCarRun-v0/episodes.parquet",
        "OfflineCarRun-v0/stats.json",
        "OfflineCarRun-v0/train-00000-of-00001.parquet",
        "README.md",
    ]
    assert result.plan.delete == (stale,)  # `datasets` would load it with the new rows
    assert sum(line.startswith("PUT") for line in hub.log) == 3  # large files; small ones are in the commit
    assert repo.files.pop("LICENSE") == b"theirs"
    hub.store.put("datasets", "org/set", {k: v for k, v in repo.files.items() if k != "LICENSE"})
    assert_published(hub, folder)


def test_tasks_that_the_folder_lacks_are_not_hidden_by_accident(hub, folder, tmp_path):
    push(hub, folder)
    before = published(hub).head
    only_ball = write(tmp_path / "other")
    with pytest.raises(HubError, match=r"org/set: holds OfflineCarRun-v0 on the Hub, which .*other does not"):
        push(hub, only_ball)
    assert published(hub).head == before
    result = push(hub, only_ball, prune=True)
    assert all(path.startswith(CAR_RUN.name) for path in result.plan.delete)
    assert len(result.plan.delete) == 4
    assert not any(path.startswith(CAR_RUN.name) for path in published(hub).files)


def test_private_repositories(hub, folder):
    push(hub, folder, private=True)
    assert published(hub).private
    assert not push(hub, folder, private=True).changed
    push(hub, folder, "org/open")
    assert not published(hub, "org/open").private
    write(folder, seed=2, overwrite=True)
    with pytest.raises(HubError, match=r"org/open: exists already and is public"):
        push(hub, folder, "org/open", private=True)
    # Who may not see it is told what to do, and nothing is made.
    with pytest.raises(HubError, match=r"access token does not allow it.*rights to create"):
        push(hub, folder, token=OTHER_TOKEN)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (False, "nothing was published: the Hub does not accept the access token, or there is none"),
        ("hf_nobody", "cannot be compared with the Hub: the Hub does not accept the access token"),
        (
            READ_TOKEN,
            "nothing was published: the access token does not allow it .*to publish, write to its org",
        ),
    ],
)
def test_tokens_that_do_not_do(hub, folder, token, message):
    with pytest.raises(HubError, match=message):
        push(hub, folder, token=token)
    assert hub.store.repos == {}


def test_a_new_branch_starts_from_main(hub, folder):
    push(hub, folder)
    main = published(hub).head
    write(folder, seed=3, overwrite=True)
    result = push(hub, folder, branch="next")
    repo = published(hub)
    assert repo.head == main
    assert repo.branches["next"] == result.commit
    assert repo.commits[result.commit].parent == main.oid
    assert not push(hub, folder, branch="next").changed


def test_pull_requests_leave_the_branch_alone_and_are_not_opened_twice(hub, folder):
    push(hub, folder)
    main = published(hub).head
    write(folder, seed=4, overwrite=True)
    result = push(hub, folder, create_pr=True, token=OTHER_TOKEN)
    assert (result.pull_request, result.changed) == ("refs/pr/1", True)
    assert result.url == f"{hub.url}/datasets/org/set/discussions/1"
    assert published(hub).head == main
    again = push(hub, folder, create_pr=True, token=OTHER_TOKEN)
    assert (again.pull_request, again.changed, again.commit) == ("refs/pr/1", False, result.commit)
    assert len(published(hub).pulls) == 1
    write(folder, seed=5, overwrite=True)
    assert push(hub, folder, create_pr=True, token=OTHER_TOKEN).pull_request == "refs/pr/2"


def test_a_branch_that_changes_meanwhile_is_not_overwritten(hub, folder):
    push(hub, folder)
    write(folder, seed=6, overwrite=True)
    plan = plan_push(find_files(folder), "org/set", UploadOptions(message="mine", token=TOKEN))
    theirs = hub.store.put("datasets", "org/set", published(hub).files | {"LICENSE": b"theirs"}).head
    with pytest.raises(HubError, match=r"nothing was published.*somebody else has changed the branch"):
        upload(plan)
    assert published(hub).head == theirs
    push(hub, folder)
    assert published(hub).files["LICENSE"] == b"theirs"
    assert published(hub).head.parent == theirs.oid


def damage(folder, what):
    ball = folder / BALL.name
    rows, stats = ball / "train-00000-of-00001.parquet", ball / "stats.json"
    values = json.loads(stats.read_text())
    if what == "no folder":
        shutil.rmtree(folder)
    elif what == "no card":
        (folder / "README.md").unlink()
    elif what == "no rows":
        rows.unlink()
    elif what == "no stats":
        stats.unlink()
    elif what == "flipped bit":
        data = bytearray(rows.read_bytes())
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)
    elif what == "cut off":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif what == "foreign rows":
        shutil.copy(rows, ball / "train-00001-of-00002.parquet")
    elif what == "missing table":
        (ball / "episodes.parquet").unlink()
    elif what == "half stats":
        stats.write_text(stats.read_text()[:100])
    elif what == "other stats":
        stats.write_text(json.dumps(values | {"config": "x"}))
    elif what == "wrong fingerprint":
        stats.write_text(json.dumps(values | {"sha256": "0" * 64}))
    elif what == "wrong count":
        stats.write_text(json.dumps(values | {"num_episodes": 3}))
    elif what == "old card":
        card = folder / "README.md"
        card.write_text(card.read_text().replace(values["sha256"], "0" * 64))
    elif what == "rows elsewhere":
        card = folder / "README.md"
        card.write_text(card.read_text().replace(f"{BALL.name}/train-*.parquet", "other/*.parquet"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", r"set: is no folder"),
        ("no card", r"set: is not a dataset folder"),
        ("no rows", r"there is no OfflineBallCircle-v0/train-\*\.parquet"),
        ("no stats", r"OfflineBallCircle-v0: has no stats\.json.*spi data convert"),
        ("flipped bit", r"train-00000-of-00001\.parquet: has changed since it was written"),
        ("cut off", r"train-00000-of-00001\.parquet: has changed since it was written"),
        ("foreign rows", r"train-00001-of-00002\.parquet: is not listed in .*stats\.json"),
        ("missing table", r"episodes\.parquet: is missing, but .*stats\.json lists it"),
        ("half stats", r"stats\.json is not complete JSON"),
        ("other stats", r"stats\.json: does not belong to config 'OfflineBallCircle-v0'"),
        ("wrong fingerprint", r"stats\.json: sha256 is '0000"),
        ("wrong count", r"stats\.json: num_episodes is 3, but the rows give 2"),
        ("old card", r"README\.md: does not name the checksum of config 'OfflineBallCircle-v0'"),
        ("rows elsewhere", r"takes rows from 'other/\*\.parquet'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_found_before_anything_is_sent(hub, folder, what, message):
    damage(folder, what)
    with pytest.raises(DatasetError, match=message):
        push(hub, folder, check=True)
    assert hub.log == []


@pytest.mark.parametrize("repo_id", ["set", "a/b/c", "org/", "org/a b", "../x"])
def test_ids_that_cannot_be(hub, folder, repo_id):
    with pytest.raises(HubError, match=r"id of a repository|form organization/name"):
        push(hub, folder, repo_id)
    assert hub.log == []


def test_an_id_of_a_model_is_another_repository(hub):
    """The upload itself serves models as well."""
    files = {"config.json": b"{}", "weights.safetensors": np.random.default_rng(0).bytes(2_000_000)}
    result = upload(plan_upload("org/set", files, UploadOptions(message="Weights", token=TOKEN)))
    assert hub.store.get("models", "org/set").files == files
    assert result.url == f"{hub.url}/org/set/commit/{result.commit}"


def test_a_header_that_is_behind_its_configs_is_published_right(folder):
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("- n<1K\n", "- 1M<n<10M\n"))
    header = published_card(find_files(folder), "org/set").partition("\n---")[0]
    assert "size_categories:\n- n<1K\n" in header


def test_words_about_other_datasets_stay(folder):
    readme = folder / "README.md"
    words = 'Made from `datasets.load_dataset("lerobot/pusht")`.'
    readme.write_text(f"{readme.read_text()}\n{words}\n")
    card = published_card(find_files(folder), "org/set")
    assert words in card
    assert 'load_transitions("org/set"' in card
    assert 'load_dataset("org/set"' in card
