"""What is said of a policy in a file of its folder: a record that saves, reads and prints itself.

No torch is imported here.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from spi_diffusers.evaluation.entries import Record
from spi_diffusers.files import local_path, read_json, to_json, written_aside
from spi_diffusers.messages import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT_VERSION = 1


class Statement(Record):
    """A record with a file of its own. Printed, it is a table with remarks."""

    #: The command that makes it.
    made_by: ClassVar[str]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, complete or not at all; OSError: it cannot be written, what was there stays."""
        path = local_path(path)
        with written_aside(path) as aside:
            aside.write_bytes(self.to_json())
        return path

    def to_json(self) -> bytes:
        """The content of the file."""
        return to_json({"format_version": FORMAT_VERSION, **self.to_dict()})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` has written; ValueError names the file and the field if it is something else."""
        content = read_json(local_path(path))
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: format_version must be {FORMAT_VERSION}, got {shown(version)}; make it anew with "
                f"`{cls.made_by}`"
            )
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def remarks(self) -> list[str]:
        """What stands below the table, a sentence or two each."""
        raise NotImplementedError

    def table(self) -> "Table":
        """It as a `rich` table."""
        raise NotImplementedError

    def as_text(self) -> str:
        """The table with the remarks, as plain text."""
        lines = [line.rstrip() for line in self._printed().export_text().splitlines()]
        return "\n".join([*lines, *self.remarks])

    def _repr_html_(self) -> str:
        return self._printed(with_remarks=True).export_html(
            inline_styles=True, code_format="<pre>{code}</pre>"
        )

    def _printed(self, *, with_remarks: bool = False) -> "Console":
        from rich.console import Console

        console = Console(file=io.StringIO(), width=140, record=True)
        console.print(self.table())
        for remark in self.remarks if with_remarks else ():
            console.print(remark, markup=False, highlight=False)
        return console
