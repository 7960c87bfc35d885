"""What a file is, by its first bytes."""

from pathlib import Path

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.files import LFS_POINTER, read_file

_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a single NumPy array (.npy)",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a parquet file",
    b"\x80": "a Python pickle",
    LFS_POINTER: "a Git LFS pointer; fetch the real file with `git lfs pull`",
    b"<": "an HTML or XML page",
}


def check_signature(path: Path, expected: bytes, kind: str) -> None:
    """Refuse, by DatasetError, a file that does not start as files of its kind do; it says what it is."""
    head = _head(path)
    if head.startswith(expected):
        return
    if not head:
        raise DatasetError(f"{path}: is empty (0 bytes), not {kind}")
    is_ = _describe(head) or "something else"
    raise DatasetError(f"{path}: is not {kind} but {is_} (it starts with the bytes {head[:8].hex(' ')})")


def check_text(path: Path, kind: str) -> None:
    """Refuse, by DatasetError, a file that is no text of its kind but an archive, a page or a pointer."""
    if is_ := _describe(_head(path)):
        raise DatasetError(f"{path}: is not {kind} but {is_}")


def _head(path: Path) -> bytes:
    try:
        return read_file(path, 32)
    except OSError as error:
        raise DatasetError(str(error)) from None


def _describe(head: bytes) -> str | None:
    return next((name for magic, name in _SIGNATURES.items() if head.startswith(magic)), None)
