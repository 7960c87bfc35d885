"""The addresses of the Hub's HTTP interface, one function each; `ROUTES` at the end lists them."""

import hashlib
from typing import Any
from urllib.parse import parse_qs, quote

import yaml
from hub_collections import ROUTES as COLLECTIONS
from hub_http import Request, Response, as_json
from hub_store import Blob, Commit, Repo, StoreError
from hub_uploads import commit, lfs_batch, lfs_complete, lfs_verify, preupload

# ---- accounts and repositories


def whoami(request: Request) -> Response:
    user = request.user
    if user is None:
        raise StoreError(401, "", "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.orgs]
    access = {"displayName": "test", "role": user.role}
    return as_json(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs}
        | {"auth": {"type": "access_token", "accessToken": access}}
    )


def create_repo(request: Request) -> Response:
    wanted, user = request.json, request.user
    if user is None:
        raise StoreError(401, "", "Invalid username or password.")
    owner = wanted.get("organization") or user.name
    kind, repo_id = f"{wanted.get('type', 'model')}s", f"{owner}/{wanted['name']}"
    if kind == "spaces" and wanted.get("sdk") not in ("gradio", "docker", "static"):
        raise StoreError(400, "", "a Space needs an sdk")
    url = f"{request.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
    if owner not in (user.name, *user.orgs) or user.role != "write":
        raise StoreError(403, "", f'You don\'t have the rights to create a {kind[:-1]} under "{owner}"')
    try:
        request.hub.store.create(kind, repo_id, private=wanted.get("visibility") == "private")
    except StoreError as error:
        error.more["url"] = url
        raise
    return as_json({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(request: Request) -> Response:
    wanted, user = request.json, request.user
    kind = f"{wanted.get('type', 'model')}s"
    repo = request.repo(kind, f"{wanted.get('organization') or user.name}/{wanted['name']}", write=True)
    del request.hub.store.repos[kind, repo.id]
    return Response(200)


def change_settings(request: Request, kind: str, repo: str) -> Response:
    found = request.repo(kind, repo, write=True)
    found.private = request.json.get("visibility", "private" if found.private else "public") == "private"
    return as_json({"private": found.private})


def list_repos(request: Request, kind: str) -> Response:
    user, author = request.user, request.query.get("author")
    names = () if user is None else (user.name, *user.orgs)
    tags = {request.query["filter"]} if "filter" in request.query else set()
    found = [
        repo
        for (its_kind, repo_id), repo in sorted(request.hub.store.repos.items())
        if its_kind == kind
        and author in (None, repo_id.split("/")[0])
        and request.query.get("search", "").lower() in repo_id.lower()
        and (not repo.private or repo_id.split("/")[0] in names)
    ]
    listed = [_info(repo, repo.head, False) for repo in found]
    return as_json([info for info in listed if tags <= set(info["tags"])])


def repo_info(request: Request, kind: str, repo: str, revision: str | None = None) -> Response:
    found = request.repo(kind, repo)
    return as_json(_info(found, found.resolve(revision), request.flag("blobs")))


def _info(repo: Repo, commit: Commit, blobs: bool) -> dict:
    siblings = []
    for path, blob in sorted(commit.files.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"size": len(blob.content), "blobId": blob.git_oid}
            if blob.is_lfs:
                pointer = {"pointerSize": len(blob.pointer)}
                entry["lfs"] = {"sha256": blob.sha256, "size": len(blob.content)} | pointer
        siblings.append(entry)
    card = _front_matter(commit.files["README.md"].content) if "README.md" in commit.files else {}
    info = {
        "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "createdAt": next(iter(repo.commits.values())).date,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(card.get("tags") or []),
        "siblings": siblings,
        "cardData": card,
    }
    if repo.kind == "models":
        info |= {"modelId": repo.id}
        info |= {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
    return info


def _front_matter(content: bytes) -> dict:
    text = content.decode()
    if not text.startswith("---\n"):
        return {}
    return yaml.safe_load(text[4:].partition("\n---")[0]) or {}


def validate_yaml(request: Request) -> Response:
    try:
        data = _front_matter(request.json["content"].encode())
        problem = "" if isinstance(data, dict) else "the metadata must be a mapping"
    except yaml.YAMLError as error:
        problem = f"the metadata is not YAML: {error}"
    if problem:
        return as_json({"errors": [{"message": problem}], "warnings": []}, 400)
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": [], "warnings": warnings})


# ---- listings


def tree(request: Request, kind: str, repo: str, revision: str, folder: str | None = None) -> Response:
    files = request.repo(kind, repo).resolve(revision).files
    commit = request.repo(kind, repo).resolve(revision)
    prefix = f"{folder}/" if folder else ""
    inside = sorted(path for path in files if path.startswith(prefix))
    if folder and not inside:
        raise StoreError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
    entries: dict[str, dict] = {}
    for path in inside:
        parts = path[len(prefix) :].split("/")
        depth = len(parts) if request.flag("recursive") else min(len(parts), 1)
        for level in range(1, depth + 1):
            name = prefix + "/".join(parts[:level])
            entries[name] = _entry(name, files.get(name), commit, request.flag("expand"))
    listed = list(entries.values())
    start, size = int(request.query.get("cursor", 0)), request.hub.page_size
    headers = {}
    if start + size < len(listed):
        query = f"recursive={request.query.get('recursive', '')}&expand={request.query.get('expand', '')}"
        address = f"{request.hub.url}{quote(request.path)}?{query}&cursor={start + size}"
        headers["Link"] = f'<{address}>; rel="next"'
    return as_json(listed[start : start + size], **headers)


def paths_info(request: Request, kind: str, repo: str, revision: str) -> Response:
    commit = request.repo(kind, repo).resolve(revision)
    form = parse_qs(request.body.decode())
    expand = form.get("expand", [""])[0].lower() == "true"
    entries = []
    for path in form.get("paths", []):
        if path in commit.files:
            entries.append(_entry(path, commit.files[path], commit, expand))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            entries.append(_entry(path, None, commit, expand))
    return as_json(entries)


def _entry(path: str, blob: Blob | None, commit: Commit, expand: bool) -> dict:
    last = {"id": commit.oid, "title": commit.title, "date": commit.date}
    more = {"lastCommit": last} if expand else {}
    if blob is None:
        oid = hashlib.sha1(f"{commit.oid}:{path}".encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path} | more
    size = len(blob.content)
    entry = {"type": "file", "oid": blob.git_oid, "size": size, "path": path} | more
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    return entry


def refs(request: Request, kind: str, repo: str) -> Response:
    found = request.repo(kind, repo)

    def rows(names: dict[str, str], folder: str) -> list[dict]:
        return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]

    content = {"branches": rows(found.branches, "heads"), "tags": rows(found.tags, "tags"), "converts": []}
    if request.flag("include_prs"):
        content["pullRequests"] = rows({str(num): oid for num, oid in found.pull_heads.items()}, "pr")
    return as_json(content)


def commits(request: Request, kind: str, repo: str, revision: str) -> Response:
    found, rows = request.repo(kind, repo), []
    commit: Commit | None = found.resolve(revision)
    while commit is not None:
        row = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
        rows.append(row | {"authors": [{"user": commit.author}]})
        commit = found.commits[commit.parent] if commit.parent else None
    return as_json(rows)


# ---- references and pull requests


def create_branch(request: Request, kind: str, repo: str, name: str) -> Response:
    found = request.repo(kind, repo, write=True)
    if name in found.branches:
        raise StoreError(409, "", f"Reference refs/heads/{name} already exists")
    found.branches[name] = found.resolve(request.json.get("startingPoint")).oid
    return Response(201)


def create_tag(request: Request, kind: str, repo: str, revision: str) -> Response:
    found, name = request.repo(kind, repo, write=True), request.json["tag"]
    if name in found.tags:
        raise StoreError(409, "", f"Tag {name} already exists")
    found.tags[name] = found.resolve(revision).oid
    return Response(201)


def delete_ref(request: Request, kind: str, repo: str, what: str, name: str) -> Response:
    found = request.repo(kind, repo, write=True)
    refs = found.branches if what == "branch" else found.tags
    if refs.pop(name, None) is None:
        raise StoreError(404, "RevisionNotFound", f"{what} {name} does not exist")
    return Response(200)


def discussions(request: Request, kind: str, repo: str) -> Response:
    found = request.repo(kind, repo)
    rows = [_discussion(found, num) for num in sorted(found.pulls)]
    return as_json({"discussions": rows, "count": len(rows), "start": 0})


def discussion(request: Request, kind: str, repo: str, num: str) -> Response:
    found = request.repo(kind, repo)
    if int(num) not in found.pulls:
        raise StoreError(404, "", "Discussion not found")
    return as_json(_discussion(found, int(num)))


def _discussion(repo: Repo, num: int) -> dict:
    pull = repo.pulls[num]
    changes = {"base": f"refs/heads/{pull.base}", "mergeCommitId": pull.merge_oid}
    return {
        "num": num,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "status": pull.status,
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.kind[:-1]},
        "changes": changes,
        "filesWithConflicts": [],
        "events": [],
        "diff": "",
    }


def merge(request: Request, kind: str, repo: str, num: str) -> Response:
    found = request.repo(kind, repo, write=True)
    request.hub.store.merge(found, int(num), request.user.name)
    return Response(200)


# ---- downloads


def resolve(request: Request, repo: str, revision: str, path: str, kind: str | None = None) -> Response:
    kind = kind or "models"
    found = request.repo(kind, repo)
    made = found.resolve(revision)
    headers = {"X-Repo-Commit": made.oid}
    blob = made.files.get(path)
    if blob is None:
        raise StoreError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
    if not blob.is_lfs:
        return request.ranged(blob.content, headers | {"ETag": f'"{blob.git_oid}"'})
    found.objects.setdefault(blob.sha256, blob.content)
    address = f"{request.hub.cdn_url}/get/{kind}/{repo}/{blob.sha256}"
    linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    return Response(302, b"", headers | linked | {"Location": address})


_ID = r"(?P<repo>[^/]+/[^/]+)"
_KIND = r"(?P<kind>models|datasets|spaces)"
_API = rf"/api/{_KIND}/{_ID}"
_GIT = rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}\.git/info/lfs"
#: Slashes of a revision are quoted in addresses, except sometimes those of refs/pr/1.
_REV = r"(?P<revision>refs/[a-z]+/[^/]+|[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("DELETE", r"/api/repos/delete", delete_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"/api/{_KIND}", list_repos),
    *COLLECTIONS,
    ("GET", _API, repo_info),
    ("GET", rf"{_API}/revision/{_REV}", repo_info),
    ("PUT", rf"{_API}/settings", change_settings),
    ("GET", rf"{_API}/tree/{_REV}(?:/(?P<folder>.+))?", tree),
    ("POST", rf"{_API}/paths-info/{_REV}", paths_info),
    ("GET", rf"{_API}/refs", refs),
    ("GET", rf"{_API}/commits/{_REV}", commits),
    ("POST", rf"{_API}/branch/(?P<name>.+)", create_branch),
    ("POST", rf"{_API}/tag/{_REV}", create_tag),
    ("DELETE", rf"{_API}/(?P<what>branch|tag)/(?P<name>.+)", delete_ref),
    ("GET", rf"{_API}/discussions", discussions),
    ("GET", rf"{_API}/discussions/(?P<num>\d+)", discussion),
    ("POST", rf"{_API}/discussions/(?P<num>\d+)/merge", merge),
    ("POST", rf"{_API}/preupload/{_REV}", preupload),
    ("POST", rf"{_API}/commit/{_REV}", commit),
    ("POST", rf"{_GIT}/objects/batch", lfs_batch),
    ("POST", rf"{_GIT}/objects/verify", lfs_verify),
    ("POST", rf"{_GIT}/complete/(?P<oid>[0-9a-f]+)", lfs_complete),
    ("GET", rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}/resolve/{_REV}/(?P<path>.+)", resolve),
]
