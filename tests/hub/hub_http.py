"""Requests to the tests' Hub and its answers."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hub_store import Repo, StoreError

if TYPE_CHECKING:
    from hub_server import HubServer, User


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    hub: "HubServer"
    method: str
    path: str
    raw_path: str
    query: dict[str, str]
    headers: Any
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> "User | None":
        return self.hub.user(self.headers.get("Authorization"))

    def repo(self, kind: str, repo_id: str, *, write: bool = False) -> Repo:
        user = self.user
        try:
            repo = self.hub.store.get(kind, repo_id)
        except StoreError as error:
            # Like the Hub, tell nobody who is not logged in whether it does not exist or is private.
            error.status = 404 if user else 401
            raise
        self.hub.check_access(repo, user, write=write)
        return repo

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def ranged(self, content: bytes, headers: dict[str, str]) -> Response:
        """The content, or the part of it that a Range header asks for."""
        headers = {"Accept-Ranges": "bytes", **headers}
        wanted = self.headers.get("Range")
        if not wanted:
            return Response(200, content, headers)
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        if start == "":
            first, last = max(len(content) - int(end), 0), len(content) - 1
        else:
            first, last = int(start), min(int(end or len(content) - 1), len(content) - 1)
        if first >= len(content) or first > last:
            return Response(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Response(206, content[first : last + 1], headers)


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})
