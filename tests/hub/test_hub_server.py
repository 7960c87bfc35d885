"""The tests' own Hub against the real client: where it is wrong, tests that use it prove nothing."""

from pathlib import Path

import numpy as np
import pytest
from hub_faults import Fault
from hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

BIG = np.random.default_rng(0).bytes(2_500_000)  # three parts
CARD = b"---\ntags: [x]\n---\n"


def client(hub, token=TOKEN):
    return HfApi(endpoint=hub.url, token=token)


def add(path, content):
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def commit(api, repo_id, *operations, **options):
    return api.create_commit(repo_id, operations, commit_message="test", **options)


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_commit_list_and_download(hub, tmp_path, repo_type):
    api = client(hub)
    url = api.create_repo("org/thing", repo_type=repo_type)
    assert (url.repo_id, url.repo_type) == ("org/thing", repo_type)
    first = api.repo_info("org/thing", repo_type=repo_type).sha
    made = commit(
        api,
        "org/thing",
        add("a/big.bin", BIG),
        add("README.md", CARD),
        repo_type=repo_type,
    )
    info = api.repo_info("org/thing", repo_type=repo_type, files_metadata=True)
    assert info.sha == made.oid != first
    assert info.tags == ["x"]
    assert {s.rfilename: s.size for s in info.siblings}["a/big.bin"] == len(BIG)
    for name, content in (("a/big.bin", BIG), ("README.md", CARD)):
        options = {"repo_type": repo_type, "endpoint": hub.url, "token": TOKEN, "cache_dir": tmp_path}
        assert Path(hf_hub_download("org/thing", name, **options)).read_bytes() == content
    items = list(api.list_repo_tree("org/thing", recursive=True, repo_type=repo_type))
    assert [item.path for item in items] == [".gitattributes", "README.md", "a", "a/big.bin"]
    assert items[3].lfs.sha256 == hub.store.get(f"{repo_type}s", "org/thing").head.files["a/big.bin"].sha256
    assert [c.title for c in api.list_repo_commits("org/thing", repo_type=repo_type)] == [
        "test",
        "initial commit",
    ]
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/thing", "none.txt", **options)
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("org/thing", revision="v9", repo_type=repo_type)


def test_uploads_go_once_and_deletions_count(hub):
    api = client(hub)
    api.create_repo("org/thing")
    commit(api, "org/thing", add("big.bin", BIG), add("small.txt", b"1"))
    puts = [line for line in hub.log if line.startswith("PUT")]
    assert len(puts) == 3
    commit(api, "org/thing", add("copy.bin", BIG), CommitOperationDelete("small.txt"))
    assert [
        line for line in hub.log if line.startswith("PUT")
    ] == puts  # content that is there is not sent again
    assert hub.store.get("models", "org/thing").files == {"big.bin": BIG, "copy.bin": BIG}


def test_pages_of_listings(hub):
    hub.page_size = 3
    hub.store.put("models", "org/many", {f"f{k}.txt": b"" for k in range(10)})
    assert len(list(client(hub).list_repo_tree("org/many"))) == 11


def test_branches_tags_and_pull_requests(hub):
    api = client(hub)
    hub.store.put("models", "org/thing", {"a.txt": b"1"})
    head = api.repo_info("org/thing").sha
    api.create_branch("org/thing", branch="next/one")
    api.create_tag("org/thing", tag="v1")
    commit(api, "org/thing", add("b.txt", b"2"), revision="next/one")
    assert api.repo_info("org/thing", revision="v1").sha == api.repo_info("org/thing").sha == head
    pull = commit(client(hub, OTHER_TOKEN), "org/thing", add("c.txt", b"3"), create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert api.repo_info("org/thing").sha == head
    assert api.repo_info("org/thing", revision="refs/pr/1").sha == pull.oid
    refs = api.list_repo_refs("org/thing", include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "next/one"}
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", pull.oid)]
    assert [d.num for d in api.get_repo_discussions("org/thing")] == [1]
    api.merge_pull_request("org/thing", 1)
    assert hub.store.get("models", "org/thing").files == {"a.txt": b"1", "c.txt": b"3"}
    assert api.get_discussion_details("org/thing", 1).status == "merged"


def test_a_stale_parent_is_refused(hub):
    api = client(hub)
    repo = hub.store.put("models", "org/thing", {"a.txt": b"1"})
    before = repo.head.oid
    commit(api, "org/thing", add("a.txt", b"2"), parent_commit=before)
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, "org/thing", add("a.txt", b"3"), parent_commit=before)
    assert repo.files == {"a.txt": b"2"}


def test_who_may_do_what(hub):
    hub.store.put("datasets", "org/secret", {"a.txt": b"1"}, private=True)
    hub.store.put("models", "org/open", {"a.txt": b"1"})
    assert client(hub).repo_info("org/secret", repo_type="dataset").private
    assert client(hub, READ_TOKEN).repo_info("org/secret", repo_type="dataset").private
    for token in (False, OTHER_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            client(hub, token).repo_info("org/secret", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="401"):
        client(hub, "hf_nobody").repo_info("org/open")
    for token in (READ_TOKEN, OTHER_TOKEN):
        with pytest.raises(HfHubHTTPError, match="403"):
            commit(client(hub, token), "org/open", add("a.txt", b"2"))
        with pytest.raises(HfHubHTTPError, match="403"):
            client(hub, token).create_repo("org/new")
    with pytest.raises(HfHubHTTPError, match="409"):
        client(hub).create_repo("org/open")
    assert [m.id for m in client(hub, False).list_models(author="org")] == ["org/open"]
    assert client(hub).whoami()["name"] == "writer"


def test_damaged_uploads_are_refused(hub):
    api = client(hub)
    api.create_repo("org/thing")
    before = hub.store.get("models", "org/thing").head
    hub.faults.set(Fault("wrong bytes", "PUT"))
    with pytest.raises(RuntimeError, match="Error while uploading") as caught:
        commit(api, "org/thing", add("big.bin", BIG))
    assert "422" in str(caught.value.__cause__)
    assert hub.store.get("models", "org/thing").head == before
    commit(api, "org/thing", add("big.bin", BIG))
    assert hub.store.get("models", "org/thing").files == {"big.bin": BIG}


def test_bad_metadata_is_refused(hub):
    api = client(hub)
    api.create_repo("org/thing")
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(api, "org/thing", add("README.md", b"---\na: [\n---\n"))
