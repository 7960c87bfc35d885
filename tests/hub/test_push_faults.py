"""Publishing dataset folders while requests fail, get lost or arrive damaged."""

import re

import pytest
from dataset_pushes import assert_published, published, push, write
from hub_faults import Fault

from spi_diffusers.hub.client import HubError


def push_under_a_fault(hub, folder, fault, exists=True):
    """Push with a fault, then again without: before, either all or nothing; after, all of it, once."""
    hub.store.repos.clear()
    if exists:
        hub.store.put("datasets", "org/set", {"README.md": b"---\nlicense: mit\n---\nbefore\n"})
    hub.faults.set(fault)
    try:
        result = push(hub, folder)
    except HubError as error:
        outcome = str(error)
        if "was made, but could not be verified" not in outcome and hub.store.repos:
            assert history(hub)[0] in BEFORE, outcome
    else:
        outcome = "published"
        assert result.changed
        assert result.commit == published(hub).head.oid
    happened = list(hub.faults.happened)
    hub.faults.set()
    push(hub, folder)
    assert_published(hub, folder)
    titles = history(hub)
    assert titles[0].startswith("Transitions of")
    assert titles[1] in BEFORE, "one commit, not several"
    return outcome, happened


BEFORE = ("initial commit", "set by the test")


def history(hub):
    """Titles of the commits of main, the newest first."""
    repo, titles = published(hub), []
    commit = repo.head
    while commit is not None:
        titles.append(commit.title)
        commit = repo.commits.get(commit.parent)
    return titles


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault("status", "GET", "/tree/", number=500), "published"),
        (Fault("drop before", "GET", "/api/datasets/org/set$"), "published"),
        (Fault("status", "GET", "/api/datasets/org/set$", times=9, number=503), "cannot be compared.*(503)"),
        (Fault("status", "POST", "/preupload/", number=503), "published"),
        (Fault("status", "POST", "/preupload/", number=429), "published"),
        (Fault("status", "POST", "/commit/", number=429, headers={"Retry-After": "7"}), "published"),
        (Fault("status", "POST", "/commit/", number=429, headers={"Retry-After": "3600"}), "wait 3600 s"),
        (Fault("status", "PUT", "/put/", number=500), "published"),
        (Fault("status", "PUT", "/put/", times=99, number=500), "nothing was published.*internal error"),
        (Fault("drop within", "PUT", "/put/"), "published"),
        (Fault("wrong bytes", "PUT", "/put/"), "nothing was published.*arrived damaged"),
        (Fault("short", "PUT", "/put/"), "nothing was published.*arrived damaged"),
        (Fault("status", "POST", "/commit/", number=500), "nothing was published.*internal error"),
        (
            Fault("status", "POST", "/commit/", times=9, number=429, headers={"Retry-After": "7"}),
            r"nothing was published.*wait 7 s \(too many requests\)",
        ),
        (Fault("drop before", "POST", "/commit/"), "nothing was published"),
        (Fault("drop within", "POST", "/commit/"), "nothing was published"),
        (Fault("drop after", "POST", "/commit/"), "published"),
        (Fault("slow", "POST", "/commit/", number=300), "published"),
        (Fault("drop before", "POST", "/paths-info/"), "published"),
        (Fault("status", "POST", "/paths-info/", times=9, number=500), "was made, but could not be verified"),
    ],
    ids=lambda value: f"{value.kind} {value.path} x{value.times}" if isinstance(value, Fault) else "",
)
def test_faults(hub, folder, fault, outcome):
    actual, happened = push_under_a_fault(hub, folder, fault)
    assert happened
    assert re.search(outcome, actual), actual


def test_a_commit_that_holds_something_else_is_noticed(hub, folder):
    hub.verifies_uploads = False  # a Hub that stores whatever arrives
    hub.faults.set(Fault("wrong bytes", "PUT", "/put/"))
    with pytest.raises(HubError, match=r"does not hold what was uploaded: .* differs in size or checksum"):
        push(hub, folder)


def test_a_lost_answer_to_a_pull_request_opens_no_second_one(hub, folder):
    push(hub, folder)
    write(folder, seed=7, overwrite=True)
    hub.faults.set(Fault("drop after", "POST", "/commit/"))
    result = push(hub, folder, create_pr=True)
    assert (result.pull_request, len(published(hub).pulls)) == ("refs/pr/1", 1)


@pytest.mark.parametrize("exists", [True, False], ids=["existing repository", "new repository"])
@pytest.mark.parametrize(
    "kind",
    [
        "drop after",  # the one that leaves client and server in disagreement
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("status", "drop before", "drop within", "slow")
        ),
    ],
)
def test_every_request_may_fail_in_every_way(hub, folder, kind, exists):
    """One request after the other, of all that a push makes."""
    number = 20 if kind == "slow" else 500
    failures = 0
    for index in range(100):
        outcome, happened = push_under_a_fault(hub, folder, Fault(kind, skip=index, number=number), exists)
        if not happened:
            break
        failures += outcome != "published"
    assert index > 15
    assert failures == 0 if kind == "slow" else failures >= 1
