"""A writable Hub on the loopback interface, for the real clients: huggingface_hub, datasets, diffusers.

The clients' HTTP backends cannot be patched sensibly (one of them is Rust), so a real server it is. Large
files come from and go to a second port, as from the Hub's CDN. Everything lives in memory.

    with HubServer() as hub:
        hub.store.put("datasets", "org/data", {"README.md": b"..."})
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))
        assert hub.store.get("models", "org/new").files["config.json"] == ...

`hub.faults.set(Fault("drop after", "POST", "/commit/"))` makes requests fail, see hub_faults.py.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from dataset_hub import client_environment
from hub_api import ROUTES
from hub_faults import FaultPlan
from hub_http import Request, Response
from hub_store import HubStore, Repo, StoreError

#: May write to every namespace of the tests, may write to its own only, may only read.
TOKEN, OTHER_TOKEN, READ_TOKEN = "hf_writer", "hf_other", "hf_reader"


_sleep = time.sleep  # tests make the clients' pauses short; a slow answer stays slow


@dataclass(frozen=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"


USERS = {
    TOKEN: User("writer", ("org", "lab")),
    OTHER_TOKEN: User("other"),
    READ_TOKEN: User("reader", ("org", "lab"), "read"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer takes 40 ms
    hub: "HubServer"
    answer_to: Callable[[Request], Response]

    def log_message(self, *args):
        pass

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.faults.take(self.command, path)
        kind = fault.kind if fault else ""
        self.hub.log.append(f"{self.command} {path}")
        if kind == "drop before":
            return self.hang_up()
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "drop within" and length:
            self.rfile.read(length // 2)
            return self.hang_up()
        body = self.read_chunked() if self.headers.get("Transfer-Encoding") else self.rfile.read(length)
        if kind == "slow":
            _sleep(fault.number / 1000)
        if kind == "status":
            response = Response(fault.number, b"", {"X-Error-Message": "as the test says", **fault.headers})
        else:
            if body and kind == "wrong bytes":
                body = flip(body)
            if body and kind == "short":
                body = body[: len(body) // 2]
            response = self.respond(path, body)
        if kind == "drop after":
            return self.hang_up()
        if response.body and not body and kind == "wrong bytes":
            response = Response(response.status, flip(response.body), response.headers)
        if response.body and not body and kind == "short":
            response = Response(response.status, response.body[: len(response.body) // 2], response.headers)
        half = kind == "drop within"
        return self.send(response, half)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def respond(self, path: str, body: bytes) -> Response:
        query = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        raw_path = urlsplit(self.path).path
        request = Request(self.hub, self.command, path, raw_path, query, self.headers, body)
        try:
            return type(self).answer_to(request)
        except StoreError as error:
            content = {"error": error.message, **error.more}
            headers = {"X-Error-Message": error.message, "Content-Type": "application/json"}
            if error.code:
                headers["X-Error-Code"] = error.code
            return Response(error.status, json.dumps(content).encode(), headers)

    def read_chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, response: Response, half: bool = False) -> None:
        try:
            self.send_response(response.status)
            for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body[: len(response.body) // 2] if half else response.body)
                self.wfile.flush()
            if half:
                self.hang_up()
        except OSError:  # the client has gone, perhaps it was killed
            self.close_connection = True

    def hang_up(self) -> None:
        self.close_connection = True


class HubHandler(Handler):
    @staticmethod
    def answer_to(request: Request) -> Response:
        for method, pattern, route in ROUTES:
            if method == request.method or (method == "GET" and request.method == "HEAD"):
                match = re.fullmatch(pattern, request.raw_path)
                if match:
                    groups = match.groupdict().items()
                    return route(request, **{k: v and unquote(v) for k, v in groups})
        raise StoreError(404, "", f"no such address: {request.method} {request.path}")


class CdnHandler(Handler):
    """Large files: GET /get/<kind>/<id>/<sha256>, PUT /put/<kind>/<id>/<sha256>[/<part>]."""

    @staticmethod
    def answer_to(request: Request) -> Response:
        _, verb, kind, owner, name, sha256, *part = request.path.split("/")
        repo = request.hub.store.get(kind, f"{owner}/{name}")
        if verb == "get" and request.method in ("GET", "HEAD"):
            return request.ranged(repo.objects[sha256], {"ETag": f'"{sha256}"'})
        if verb == "put" and request.method == "PUT":
            if part:
                request.hub.parts[sha256, int(part[0])] = request.body
            else:
                repo.objects[sha256] = request.body
            return Response(200, b"", {"ETag": f'"{sha256[:8]}-{"".join(part)}"'})
        raise StoreError(404, "", "no such address")


class HubServer:
    """The server; a context manager.

    Attributes:
        store: what is on the Hub.
        faults: what goes wrong.
        log: "METHOD /path" of every request so far.
        parts: parts of multipart uploads that are not complete.
        part_size: larger files are uploaded in parts of this many bytes.
        page_size: entries on a page of a folder's listing.
        lfs_threshold: files of this size and more go to large-file storage, whatever their names.
        verifies_uploads: refuse large files that arrived damaged, as the Hub does.
    """

    def __init__(self, *, part_size: int = 1 << 20, page_size: int = 1000, lfs_threshold: int = 10 << 20):
        self.store, self.faults = HubStore(), FaultPlan()
        self.log: list[str] = []
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size, self.page_size, self.lfs_threshold = part_size, page_size, lfs_threshold
        self.verifies_uploads = True
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": self}))
            for handler in (HubHandler, CdnHandler)
        ]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def user(self, authorization: str | None) -> User | None:
        if not authorization:
            return None
        user = USERS.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise StoreError(401, "", "Invalid credentials in Authorization header")
        return user

    def check_access(self, repo: Repo, user: User | None, *, write: bool = False) -> None:
        owner = repo.id.split("/")[0]
        member = user is not None and owner in (user.name, *user.orgs)
        if repo.private and not member:
            raise StoreError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise StoreError(401, "", "Invalid username or password.")
        if write and not (member and user.role == "write"):
            raise StoreError(403, "", f"you don't have the rights to write to {repo.id}")

    def writes(self) -> list[str]:
        """Requests so far that changed or tried to change something."""
        reads = ("GET", "HEAD", "POST /api/validate-yaml")
        return [line for line in self.log if not line.startswith(reads) and "/paths-info/" not in line]

    def environment(self, home, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that point a fresh client process at this server and at nothing else."""
        return client_environment(self.url, home) | {"HF_TOKEN": token or ""}


def flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
