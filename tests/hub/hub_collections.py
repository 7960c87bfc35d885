"""The addresses of the Hub's HTTP interface that are about collections."""

import hashlib
import re

from hub_http import Request, Response, as_json
from hub_store import StoreError

#: A listing of collections shows no more items of each.
LISTED_ITEMS = 4


def create(request: Request) -> Response:
    wanted, user = request.json, request.user
    if user is None:
        raise StoreError(401, "", "Invalid username or password.")
    namespace, title = wanted["namespace"], wanted["title"]
    if namespace not in (user.name, *user.orgs) or user.role != "write":
        raise StoreError(403, "", f"You don't have the rights to create a collection under {namespace!r}")
    store = request.hub.store
    with store.lock:
        for slug, known in store.collections.items():
            if (known["owner"]["name"], known["title"]) == (namespace, title):
                raise StoreError(409, "", "This collection already exists", slug=slug)
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        slug = f"{namespace}/{words}-{hashlib.md5(f'{namespace}/{title}'.encode()).hexdigest()[:24]}"
        store.collections[slug] = {
            "slug": slug,
            "title": title,
            "description": wanted.get("description"),
            "owner": {"name": namespace, "type": "user" if namespace == user.name else "org"},
            "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": bool(wanted.get("private")),
            "theme": "blue",
            "upvotes": 0,
        }
        return as_json(store.collections[slug])


def show(request: Request, slug: str) -> Response:
    return as_json(_visible(request, slug))


def listing(request: Request) -> Response:
    found = []
    for slug, known in sorted(request.hub.store.collections.items()):
        if request.query.get("owner") in (None, known["owner"]["name"]) and _may_see(request, known):
            shown = _visible(request, slug)
            del shown["position"]  # the client counts itself
            found.append(shown | {"items": shown["items"][:LISTED_ITEMS]})
    start, size = int(request.query.get("cursor", 0)), request.hub.page_size
    headers = {}
    if start + size < len(found):
        owner = f"owner={request.query['owner']}&" if "owner" in request.query else ""
        address = f"{request.hub.url}{request.path}?{owner}cursor={start + size}"
        headers["Link"] = f'<{address}>; rel="next"'
    return as_json(found[start : start + size], **headers)


def add_item(request: Request, slug: str) -> Response:
    known = _of_writer(request, slug)
    kind, item_id = request.json["item"]["type"], request.json["item"]["id"]
    request.repo(f"{kind}s", item_id)  # 404 if there is none, or if it cannot be seen
    with request.hub.store.lock:
        items = known["items"]
        if any((item["type"], item["id"]) == (kind, item_id) for item in items):
            raise StoreError(409, "", "Item already in collection")
        item = {"_id": f"{len(items):024x}", "id": item_id, "type": kind, "position": len(items)}
        note = request.json.get("note")
        items.append(item | ({"note": {"text": note}} if note else {}))
    return as_json(_visible(request, slug))


def _may_see(request: Request, known: dict) -> bool:
    user = request.user
    return not known["private"] or (user is not None and known["owner"]["name"] in (user.name, *user.orgs))


def _visible(request: Request, slug: str) -> dict:
    """The collection without what the user may not see."""
    known = request.hub.store.collections.get(slug)
    if known is None or not _may_see(request, known):
        raise StoreError(404, "", "Collection not found")
    items = []
    for item in known["items"]:
        try:
            request.repo(f"{item['type']}s", item["id"])
        except StoreError:
            continue
        items.append(item)
    return known | {"items": items}


def _of_writer(request: Request, slug: str) -> dict:
    _visible(request, slug)
    known, user = request.hub.store.collections[slug], request.user
    if user is None:
        raise StoreError(401, "", "Invalid username or password.")
    if known["owner"]["name"] not in (user.name, *user.orgs) or user.role != "write":
        raise StoreError(403, "", f"You don't have the rights to change {slug}")
    return known


ROUTES = [
    ("POST", r"/api/collections", create),
    ("GET", r"/api/collections", listing),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", show),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", add_item),
]
