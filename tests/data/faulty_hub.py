"""A Hub whose large files (LFS) come from a CDN address that fails in the ways that networks fail."""

import contextlib
import hashlib
import socket
import struct
import time
from urllib.parse import unquote

from dataset_hub import COMMIT, DatasetHandler, DatasetHub, blob_id


class FaultyHandler(DatasetHandler):
    def answer(self):
        path = unquote(self.path)
        if not path.startswith("/cdn/"):
            if path.startswith("/api/"):
                self.hub.asked += 1
                status = self.hub.api_statuses.pop(0) if self.hub.api_statuses else 0
                if status:
                    return self.send(status, b"", {"X-Error-Message": "as the test says"})
            return super().answer()
        _, _, owner, name, *inner = path.split("/")
        content = self.hub.repositories[f"{owner}/{name}"]["/".join(inner)]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.hub.served.append(start)
        kind, _, number = (self.hub.faults.pop(0) if self.hub.faults else "").partition("@")
        return self.serve(content, start, kind, int(number or 0))

    def serve(self, content, start, kind, number):
        """Send `content` from `start` on, with one fault; `number` counts bytes or is an HTTP status."""
        if kind == "status":
            return self.send(number, b"", {"X-Error-Code": "Fault", "X-Error-Message": "as the test says"})
        if kind == "corrupt":
            content = content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :]
        if kind == "short":
            content = content[: start + number]
        if kind == "norange":
            start = 0
        body = content[start:]
        headers = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", "Connection": "close"}
        self.send_response(206 if start else 200)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if kind in ("drop", "reset", "stall"):
            self.wfile.write(body[:number])
            self.wfile.flush()
            if kind == "stall":
                time.sleep(1.0)
            if kind == "reset":
                time.sleep(0.1)  # a reset overtakes what the client has not read yet
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return None
        if kind == "slow":
            with contextlib.suppress(OSError):  # the client was killed
                for position in range(0, len(body), number):
                    self.wfile.write(body[position : position + number])
                    time.sleep(0.01)
            return None
        return self.wfile.write(body)

    def finish(self):
        with contextlib.suppress(OSError):  # the client has gone, or the fault has closed the connection
            super().finish()

    def entries(self, files, folder):
        found = super().entries(files, folder)
        for entry in found:
            if entry["type"] == "file" and self.hub.is_lfs:
                digest = self.hub.sha256.get(entry["path"]) or sha256(files[entry["path"]])
                entry["oid"] = blob_id(f"oid sha256:{digest}".encode())
                entry["lfs"] = {"oid": digest, "size": entry["size"], "pointerSize": 134}
        return found

    def send_file(self, content):
        if content is None:
            return super().send_file(content)
        location = self.path.replace("/datasets/", "/cdn/").replace(f"/resolve/{COMMIT}", "")
        return self.send(302, b"", {"Location": location, "X-Linked-Size": str(len(content))})


class FaultyHub(DatasetHub):
    """Attributes to set: `faults`, one per CDN request in order; `api_statuses`, one per API request, 0 for
    success; `sha256`, wrong checksums by path. `asked` counts API requests; `served` has the first byte of
    each CDN request."""

    handler = FaultyHandler
    is_lfs = True

    def __init__(self, repositories):
        super().__init__(repositories)
        self.reset()

    def reset(self, *faults, sha256=(), api_statuses=()):
        self.faults, self.sha256, self.served = list(faults), dict(sha256), []
        self.api_statuses, self.asked = list(api_statuses), 0
        self.requests.clear()


def sha256(content):
    return hashlib.sha256(content).hexdigest()
