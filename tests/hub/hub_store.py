"""What the tests' Hub holds: repositories with commits, branches, tags, pull requests and large files.

Commits are immutable; a write makes a new one and then moves one reference, under one lock, so a reader sees
the state before or after. Nothing here knows of HTTP.
"""

import hashlib
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

#: What the Hub's default .gitattributes puts into large-file storage, as far as tests need it.
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".npz", ".hdf5", ".h5", ".pt", ".pkl", ".mp4", ".png")
#: The first commit of every repository.
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()


class StoreError(Exception):
    """A request that the Hub refuses: HTTP status, the Hub's error code, message."""

    def __init__(self, status: int, code: str, message: str, **more):
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


@dataclass(frozen=True)
class Blob:
    """A file's content, kept in git itself or in large-file storage."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return f"{head}size {len(self.content)}\n".encode()

    @property
    def git_oid(self) -> str:
        """Git's SHA-1 of what git holds: the content, or the pointer to it."""
        return git_sha1(self.pointer if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str
    date: str


@dataclass
class PullRequest:
    num: int
    title: str
    author: str
    base: str
    date: str
    status: str = "open"
    merge_oid: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repo:
    """One repository; `kind` is "models", "datasets" or "spaces"."""

    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, PullRequest] = field(default_factory=dict)
    pull_heads: dict[int, str] = field(default_factory=dict)
    #: Large files that were uploaded, by the SHA-256 that the client gave for them.
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    @property
    def files(self) -> dict[str, bytes]:
        """Contents at the head of main, without the .gitattributes that the Hub made."""
        found = {path: blob.content for path, blob in self.head.files.items()}
        return {path: content for path, content in found.items() if path != ".gitattributes"}

    def resolve(self, revision: str | None) -> Commit:
        """The commit of a branch, tag, pull request, or (abbreviated) commit id."""
        name = revision or "main"
        if name.startswith("refs/pr/") and name.removeprefix("refs/pr/").isdigit():
            oid = self.pull_heads.get(int(name.removeprefix("refs/pr/")))
        else:
            short = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
            oid = self.branches.get(short) or self.tags.get(short)
            if oid is None and len(name) >= 7:
                oid = next((known for known in self.commits if known.startswith(name)), None)
        if oid is None:
            raise StoreError(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return self.commits[oid]


class HubStore:
    """All repositories; every change goes through here."""

    def __init__(self):
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}  # as the Hub describes them, by slug
        self._count = itertools.count(1)

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> Repo:
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise StoreError(409, "", "You already created this repo")
            repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
            self._add(repo, None, {".gitattributes": Blob(GITATTRIBUTES, False)}, "initial commit")
            return repo

    def get(self, kind: str, repo_id: str) -> Repo:
        repo = self.repos.get((kind, repo_id))
        if repo is None:
            raise StoreError(404, "RepoNotFound", "Repository not found")
        return repo

    def put(self, kind: str, repo_id: str, files: Mapping[str, bytes], *, private: bool = False) -> Repo:
        """Set a repository's files from within a test, as one commit on main."""
        with self.lock:
            if (kind, repo_id) not in self.repos:
                self.create(kind, repo_id, private=private)
            repo = self.get(kind, repo_id)
            blobs = {path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
            kept = {path: blob for path, blob in repo.head.files.items() if path == ".gitattributes"}
            self._add(repo, repo.head.oid, kept | blobs, "set by the test")
            return repo

    def commit(
        self,
        repo: Repo,
        revision: str,
        operations: list[tuple[str, dict]],
        *,
        author: str,
        create_pr: bool = False,
    ) -> tuple[Commit, PullRequest | None]:
        """Apply a commit's operations, as they stand in the request's lines; all of them or none."""
        with self.lock:
            header = dict(operations).get("header", {})
            pull = self._open_pull(repo, revision, header, author) if create_pr else None
            if pull is None and revision not in repo.branches and not revision.startswith("refs/pr/"):
                repo.resolve(revision)  # an unknown revision is a 404
                raise StoreError(400, "", f"{revision} is not a branch: commits go to a branch")
            base = repo.resolve(revision)
            expected = header.get("parentCommit")
            if expected is not None and expected != base.oid:
                raise StoreError(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for key, value in operations:
                _apply(repo, files, key, value)
            target = pull.ref if pull else revision
            text = header.get("summary", ""), header.get("description", "")
            commit = self._add(repo, base.oid, files, *text, author=author, ref=target)
            if pull is not None:
                repo.pulls[pull.num] = pull
            return commit, pull

    def merge(self, repo: Repo, num: int, author: str) -> None:
        with self.lock:
            pull = repo.pulls.get(num)
            if pull is None or pull.status != "open":
                raise StoreError(404, "", "Discussion not found, or not open")
            head = repo.commits[repo.pull_heads[num]]
            base = repo.commits[head.parent] if head.parent else head
            mine = {path: blob for path, blob in head.files.items() if base.files.get(path) != blob}
            gone = base.files.keys() - head.files.keys()
            files = {path: blob for path, blob in repo.head.files.items() if path not in gone} | mine
            merged = self._add(repo, repo.head.oid, files, f"{pull.title} (#{num})", author=author)
            pull.status, pull.merge_oid = "merged", merged.oid

    def _open_pull(self, repo: Repo, revision: str, header: dict, author: str) -> PullRequest:
        if revision not in repo.branches:
            raise StoreError(400, "", "a pull request starts from a branch")
        return PullRequest(len(repo.pulls) + 1, header.get("summary", ""), author, revision, self._now())

    def _add(self, repo, parent, files, title, message="", *, author="system", ref="main") -> Commit:
        number = next(self._count)
        tree = "".join(f"{path}:{blob.git_oid};" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{number}:{parent}:{title}:{tree}".encode()).hexdigest()
        date = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)).strftime(
            "%Y-%m-%dT%H:%M:%S.000Z"
        )
        commit = repo.commits[oid] = Commit(oid, parent, files, title, message, author, date)
        if ref.startswith("refs/pr/"):
            repo.pull_heads[int(ref.removeprefix("refs/pr/"))] = oid
        else:
            repo.branches[ref] = oid
        return commit

    def _now(self) -> str:
        return datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _apply(repo: Repo, files: dict[str, Blob], key: str, value: dict) -> None:
    import base64

    path = value.get("path", "")
    if key == "header":
        return
    if key == "file":
        content = value["content"]
        raw = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
        files[path] = Blob(raw, False)
    elif key == "lfsFile":
        stored = repo.objects.get(value["oid"])
        if stored is None:
            raise StoreError(
                400, "", f"LFS pointer pointed to a file that does not exist: {path}, oid {value['oid']}"
            )
        files[path] = Blob(stored, True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise StoreError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise StoreError(400, "", f"unknown operation {key!r}")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
