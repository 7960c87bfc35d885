"""The checksums by which the Hub tells files apart."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checksums:
    """Size and checksums of a file's content.

    Attributes:
        size: in bytes.
        sha256: of the content; the Hub's name of a large file.
        git_sha1: git's id of the content as a blob; the Hub's name of a small file.
    """

    size: int
    sha256: str
    git_sha1: str

    @classmethod
    def of(cls, content: Path | bytes) -> "Checksums":
        """Compute the checksums of a local file, or of bytes.

        Raises:
            OSError: the file cannot be read.
        """
        if isinstance(content, bytes):
            size = len(content)
            sha256 = hashlib.sha256(content)
            sha1 = hashlib.sha1(b"blob %d\0" % size + content)
            return cls(size, sha256.hexdigest(), sha1.hexdigest())
        size = content.stat().st_size
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                sha1.update(block)
        return cls(size, sha256.hexdigest(), sha1.hexdigest())
