"""The addresses of the Hub's HTTP interface by which files and commits arrive."""

import hashlib
import json
from typing import Any

from hub_http import Request, Response, as_json
from hub_store import LFS_SUFFIXES, StoreError


def preupload(request: Request, kind: str, repo: str, revision: str) -> Response:
    pull_request = request.flag("create_pr")
    found = request.repo(kind, repo, write=not pull_request)
    current = found.resolve(revision).files
    answers = []
    for file in request.json["files"]:
        path = file["path"]
        large = path.endswith(LFS_SUFFIXES) or file["size"] >= request.hub.lfs_threshold
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | {"oid": current[path].etag if path in current else None})
    return as_json({"files": answers})


def lfs_batch(request: Request, repo: str, kind: str | None = None) -> Response:
    kind = kind or "models"
    found, wanted, hub = request.repo(kind, repo), request.json, request.hub
    if request.user is None:
        raise StoreError(401, "", "Invalid username or password.")
    objects = []
    for item in wanted["objects"]:
        oid, size = item["oid"], item["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size}
        stored = found.objects.get(oid)
        if stored is None:
            address = f"{hub.cdn_url}/put/{kind}/{repo}/{oid}"
            git = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{repo}.git/info/lfs"
            upload: dict[str, Any] = {"href": address}
            if size > hub.part_size:
                count = -(-size // hub.part_size)
                header = {str(part): f"{address}/{part}" for part in range(1, count + 1)}
                upload = {
                    "href": f"{git}/complete/{oid}",
                    "header": {"chunk_size": str(hub.part_size)} | header,
                }
            answer["actions"] = {"upload": upload, "verify": {"href": f"{git}/objects/verify"}}
        objects.append(answer)
    return as_json({"transfer": "basic", "objects": objects})


def lfs_complete(request: Request, repo: str, oid: str, kind: str | None = None) -> Response:
    found, parts = request.repo(kind or "models", repo), request.json["parts"]
    numbers = [part["partNumber"] for part in parts]
    content = b"".join(request.hub.parts.pop((oid, number), b"") for number in numbers)
    found.objects[oid] = content
    return as_json({})


def lfs_verify(request: Request, repo: str, kind: str | None = None) -> Response:
    """What arrived must be what was announced; else it is thrown away."""
    found, wanted = request.repo(kind or "models", repo), request.json
    content = found.objects.get(wanted["oid"])
    if content is None:
        raise StoreError(404, "", "the object does not exist")
    intact = len(content) == wanted["size"] and hashlib.sha256(content).hexdigest() == wanted["oid"]
    if not intact and request.hub.verifies_uploads:
        del found.objects[wanted["oid"]]
        raise StoreError(422, "", f"the object {wanted['oid'][:8]} arrived damaged")
    return as_json({})


def commit(request: Request, kind: str, repo: str, revision: str) -> Response:
    pull_request = request.flag("create_pr")
    found = request.repo(kind, repo, write=not pull_request)
    if request.user is None:
        raise StoreError(401, "", "Invalid username or password.")
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    made, pull = request.hub.store.commit(
        found,
        revision,
        [(line["key"], line["value"]) for line in lines],
        author=request.user.name,
        create_pr=pull_request,
    )
    url = f"{request.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"
    answer = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{url}/commit/{made.oid}",
        "hookOutput": "",
    }
    if pull is not None:
        answer["pullRequestUrl"] = f"{url}/discussions/{pull.num}"
    return as_json(answer)
