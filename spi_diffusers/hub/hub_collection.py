"""A collection on the Hub that holds policies and their dataset: found or made, and then completed.

Nothing is ever taken out of it, so what others have put in stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import Collection, HfApi

from spi_diffusers.data.network import explain, with_retries
from spi_diffusers.hub.client import HubError, change, explained, hub_api

DESCRIPTION = "Safe offline reinforcement learning: policies that take their cost limit at run time."
#: Kind and id of what a collection holds.
Item = tuple[Literal["model", "dataset"], str]


@dataclass(frozen=True)
class CollectionPlan:
    """A collection as it is before anything is put into it. Without a `slug` (its id on the Hub) it has to be
    made; `private` is what it is, or is to be.
    """

    title: str
    namespace: str
    slug: str | None
    private: bool
    items: frozenset[tuple[str, str]] = frozenset()

    def missing(self, wanted: Sequence[Item]) -> list[Item]:
        """What is to be put in, in order."""
        return [item for item in wanted if item not in self.items]


@dataclass(frozen=True)
class CollectionResult:
    """What was done: id and page of the collection, whether it is new, and what was put in."""

    slug: str
    url: str
    made: bool
    added: tuple[Item, ...]


def plan_collection(
    name: str, namespace: str, *, private: bool = False, token: str | None = None
) -> CollectionPlan:
    """Look for a collection by its title, or by its slug (`org/safe-policies-65f0c0ffee`); nothing is
    changed.

    Raises HubError if the Hub cannot be reached, there is no such slug, several have that title, or it is
    public and shall be private.
    """
    api = hub_api(token)
    with explained(f"collection {name!r} of {namespace}: cannot be read"):
        found = with_retries(lambda: _find(api, name, namespace), what=f"collection {name}")
    if found is None:
        return CollectionPlan(name, namespace, None, private)
    if private and not found.private:
        raise HubError(
            f"collection {found.slug}: exists already and is public, so this would not be private; choose "
            "another one, or change its visibility on the Hub first"
        )
    return CollectionPlan(found.title, namespace, found.slug, bool(found.private), _items(found))


def check_dataset(repo_id: str, *, token: str | None = None) -> None:
    """Raise HubError if a dataset that is to go into a collection does not exist."""
    with explained(f"dataset {repo_id}: cannot go into a collection"):
        with_retries(lambda: hub_api(token).dataset_info(repo_id), what=f"dataset {repo_id}")


def fill_collection(
    plan: CollectionPlan, wanted: Sequence[Item], *, token: str | None = None
) -> CollectionResult:
    """Make the collection if there is none, and put in what is missing of `wanted`. On a HubError, the same
    call (with a new plan) goes on.
    """
    api, slug = hub_api(token), plan.slug
    if slug is None:
        with explained(
            f"collection {plan.title!r} of {plan.namespace}: could not be made",
            ". Run the same command again: it takes one of that title, if there is one by then",
        ):
            slug = change(
                api.create_collection,
                plan.title,
                namespace=plan.namespace,
                description=DESCRIPTION,
                private=plan.private,
                exists_ok=True,
            ).slug
    missing, reasons = plan.missing(wanted), []
    for kind, item_id in missing:
        try:
            change(api.add_collection_item, slug, item_id, kind, exists_ok=True)
        except Exception as error:  # the answer may be lost and the item there: it is looked up below
            reasons.append(explain(error))
    if missing:
        again = ". Run the same command again: it adds only what is missing"
        with explained(f"collection {slug}: was filled, but could not be verified", again):
            held = _items(with_retries(lambda: api.get_collection(slug), what=f"collection {slug}"))
        if left := [item_id for kind, item_id in missing if (kind, item_id) not in held]:
            why = f": {reasons[0]}" if reasons else ""
            raise HubError(f"collection {slug}: {', '.join(left)} could not be put in{why}{again}")
    url = f"{api.endpoint}/collections/{slug}"
    return CollectionResult(slug, url, plan.slug is None, tuple(missing))


def _find(api: HfApi, name: str, namespace: str) -> Collection | None:
    if "/" in name:
        return api.get_collection(name)
    # A listing shows only some items of each.
    slugs = [found.slug for found in api.list_collections(owner=namespace) if found.title == name]
    if len(slugs) > 1:
        raise HubError(
            f"{namespace} has {len(slugs)} collections with the title {name!r}: {', '.join(slugs)}; name one "
            "by its slug"
        )
    return api.get_collection(slugs[0]) if slugs else None


def _items(found: Collection) -> frozenset[tuple[str, str]]:
    return frozenset((item.item_type, item.item_id) for item in found.items)
