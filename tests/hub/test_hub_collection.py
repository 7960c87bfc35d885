"""Collections, by the real client against the tests' Hub, whose collections are tested here first."""

import pytest
from hub_faults import Fault
from hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from spi_diffusers.hub.client import HubError
from spi_diffusers.hub.hub_collection import check_dataset, fill_collection, plan_collection

MODELS = [("model", f"org/m{number}") for number in range(6)]
ADDED = "/api/collections/[^/]+/[^/]+/items$"


@pytest.fixture
def hub(hub):
    for _, name in MODELS:
        hub.store.put("models", name, {})
    hub.store.put("datasets", "org/data", {})
    return hub


def plan(hub, name="Safe", namespace="org", token=TOKEN, **options):
    return plan_collection(name, namespace, token=token, **options)


def fill(hub, wanted, name="Safe", token=TOKEN, **options):
    return fill_collection(plan(hub, name, token=token, **options), wanted, token=token)


def held(hub):
    (collection,) = hub.store.collections.values()
    return [(item["type"], item["id"]) for item in collection["items"]]


def test_the_tests_hub_answers_as_the_client_expects(hub):
    api = HfApi(token=TOKEN)
    made = api.create_collection("A title", namespace="org", description="why", private=True)
    assert (made.title, made.description, made.private, made.items) == ("A title", "why", True, [])
    assert made.url == f"{hub.url}/collections/{made.slug}"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_collection("A title", namespace="org")
    assert api.create_collection("A title", namespace="org", exists_ok=True).slug == made.slug
    for kind, name in (*MODELS, ("dataset", "org/data")):
        found = api.add_collection_item(made.slug, name, kind, note="good" if name == "org/data" else None)
    assert [(item.item_type, item.item_id, item.note) for item in found.items][5:] == [
        ("model", "org/m5", None),
        ("dataset", "org/data", "good"),
    ]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(made.slug, "org/m0", "model")
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(made.slug, "org/none", "model")
    hub.page_size = 1
    api.create_collection("Another", namespace="org")
    listed = {found.title: len(found.items) for found in api.list_collections(owner="org")}
    assert listed == {"A title": 4, "Another": 0}  # a listing is not complete
    for token in (OTHER_TOKEN, False):
        stranger = HfApi(token=token)
        assert [found.title for found in stranger.list_collections(owner="org")] == ["Another"]
        with pytest.raises(HfHubHTTPError, match="404"):
            stranger.get_collection(made.slug)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=READ_TOKEN).add_collection_item(made.slug, "org/m0", "model")


def test_made_completed_and_then_left_alone(hub):
    first = fill(hub, MODELS[:5])
    assert (first.made, first.added, held(hub)) == (True, tuple(MODELS[:5]), MODELS[:5])
    second = fill(hub, [*MODELS, ("dataset", "org/data")])
    assert (second.slug, second.made) == (first.slug, False)
    assert second.added == (MODELS[5], ("dataset", "org/data"))
    hub.log.clear()
    assert fill(hub, MODELS).added == ()
    assert hub.writes() == []
    assert fill(hub, MODELS, name=first.slug).slug == first.slug


def test_private(hub):
    fill(hub, MODELS, private=True)
    assert next(iter(hub.store.collections.values()))["private"] is True
    assert fill(hub, MODELS, private=True).added == ()
    fill(hub, MODELS, name="Open")
    with pytest.raises(HubError, match="exists already and is public"):
        plan(hub, "Open", private=True)


def test_what_is_not_there(hub):
    with pytest.raises(HubError, match="collection 'org/none' of org: cannot be read"):
        plan(hub, "org/none")
    with pytest.raises(HubError, match="dataset org/none: cannot go into a collection"):
        check_dataset("org/none", token=TOKEN)
    check_dataset("org/data", token=TOKEN)
    with pytest.raises(HubError, match="org/none could not be put in"):
        fill(hub, [("model", "org/none"), MODELS[0]])
    assert held(hub) == [MODELS[0]]


@pytest.mark.parametrize("token", [READ_TOKEN, OTHER_TOKEN])
def test_without_the_right_to_write(hub, token):
    with pytest.raises(HubError, match="could not be made: the access token does not allow it"):
        fill(hub, MODELS, token=token)
    assert not hub.store.collections


def test_two_of_one_title(hub):
    fill(hub, MODELS)
    ((slug, known),) = hub.store.collections.items()
    hub.store.collections[f"{slug}2"] = known | {"slug": f"{slug}2"}
    with pytest.raises(HubError, match=f"2 collections with the title 'Safe': {slug}, {slug}2"):
        plan(hub)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", "POST", "/api/collections$"), "could not be made"),
        (Fault("drop before", "POST", "/api/collections$"), "could not be made"),
        (Fault("drop after", "POST", "/api/collections$"), "could not be made"),
        (Fault("status", "POST", ADDED, skip=2, number=500), "org/m2 could not be put in"),
        (Fault("drop before", "POST", ADDED, skip=2), "org/m2 could not be put in"),
        (Fault("status", "GET", "/api/collections/", times=99), "could not be verified"),
        (Fault("status", "GET", "/api/collections$", times=99), "cannot be read"),
    ],
)
def test_after_a_failure_the_same_call_completes_it(hub, fault, message):
    hub.faults.set(fault)
    with pytest.raises(HubError, match=message):
        fill(hub, MODELS)
    assert hub.faults.happened
    hub.faults.set()
    fill(hub, MODELS)
    assert sorted(held(hub)) == MODELS


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop after", "POST", ADDED, skip=1),  # the item is there, only the answer is lost
        Fault("status", "GET", "/api/collections", times=2, number=429, headers={"Retry-After": "0"}),
        Fault("drop within", "GET", "/api/collections"),
    ],
)
def test_passing_troubles_are_none(hub, fault):
    hub.faults.set(fault)
    assert fill(hub, MODELS).added == tuple(MODELS)
    assert hub.faults.happened
    assert held(hub) == MODELS
