"""A read-only Hub on the loopback interface, enough for `datasets` and `huggingface_hub` to load from.

The clients' HTTP backends cannot be patched sensibly (one of them is Rust), so a real server it is.
"""

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def client_environment(url, home):
    """Variables that point a fresh client process at a server and at nothing else."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
        "HF_HUB_ETAG_TIMEOUT": "10",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def point_client_at(monkeypatch, url):
    """Make the client in this process, which has read its environment already, ask a server, and no other."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


class DatasetHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: "DatasetHub"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests[self.command] += 1
        prefix = "api/datasets/" if path.startswith("api/") else "datasets/"
        if not path.startswith(prefix):
            return self.fail(404, "EntryNotFound")
        parts = path[len(prefix) :].split("/")
        repo_id, inner = "/".join(parts[:2]), "/".join(parts[4:])
        verb, revision = (*parts[2:4], "", "")[:2]
        files = self.hub.repositories.get(repo_id)
        if files is None:
            return self.fail(404, "RepoNotFound")
        if revision not in ("", "main", COMMIT):
            return self.fail(404, "RevisionNotFound")
        if verb in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo_id, "sha": COMMIT, "private": False, "gated": False, "disabled": False}
            return self.send_json(info | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        if verb == "tree":
            query = parse_qs(urlsplit(self.path).query)
            if query.get("recursive", ["false"])[0].lower() in ("true", "1"):
                below = sorted({inner, *(d for d in self.folders(files) if d.startswith(inner))})
                return self.send_json([entry for folder in below for entry in self.entries(files, folder)])
            return self.send_json(self.entries(files, inner))
        if verb == "paths-info":
            wanted = self.form.get("paths", [])
            everything = self.entries(files, "") + [
                e for d in self.folders(files) for e in self.entries(files, d)
            ]
            return self.send_json([entry for entry in everything if entry["path"] in wanted])
        if verb == "resolve":
            return self.send_file(files.get(inner))
        return self.fail(404, "EntryNotFound")

    def folders(self, files):
        return {name.rpartition("/")[0] for name in files} - {""}

    def entries(self, files, folder):
        found = {}
        for name, content in files.items():
            head, _, tail = name[len(folder) + 1 :].partition("/") if folder else name.partition("/")
            if folder and not name.startswith(f"{folder}/"):
                continue
            path = f"{folder}/{head}" if folder else head
            if tail:
                found[path] = {"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0}
            else:
                found[path] = {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
        return list(found.values())

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, content):
        if content is None:
            return self.fail(404, "EntryNotFound")
        headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        requested = self.headers.get("Range")
        if requested:
            start, _, end = requested.removeprefix("bytes=").partition("-")
            first, last = int(start or 0), min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(206, content[first : last + 1], headers)
        return self.send(200, content, headers)

    def fail(self, status, code):
        self.send(
            status, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code}
        )

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class DatasetHub:
    """Serves dataset repositories given as {repo_id: {path: content}}; a context manager."""

    handler = DatasetHandler

    def __init__(self, repositories):
        self.repositories = repositories
        self.requests = Counter()
        handler = type("Handler", (self.handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home):
        return client_environment(self.url, home)
