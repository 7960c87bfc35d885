"""CSV files as people's programs write them: delimiters, decimal commas, encodings, blanks, thousands."""

import codecs
import gzip
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.columns import DatasetError, list_names
from spi_diffusers.data.memory import available_memory, check_size
from spi_diffusers.data.signatures import check_signature, check_text
from spi_diffusers.messages import say

if TYPE_CHECKING:
    import pyarrow as pa

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HEAD = 1 << 16  # bytes that are looked at to find out how columns are separated
_CHUNK = 1 << 20
_COPIES = 2  # in memory at once: the text, and the table of it, which is no smaller
_THOUSANDS = " '\u2019\u00a0\u202f"  # besides the one of . and , that is not the decimal mark
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written. What is None is found out, where the file leaves no doubt.

    Attributes:
        delimiter: between columns, one character.
        decimal: the decimal mark, `.` or `,`.
        encoding: of the text, by Python's name for it; UTF-8 and, with a byte order mark, UTF-16 are known.
    """

    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            given = self.delimiter.replace("\\t", "\t")
            if len(given) != 1 or not given.isascii() or given in '\r\n"':
                raise ValueError(
                    f"delimiter (--delimiter) must be one character such as ; or \\t, got {self.delimiter!r}"
                )
            object.__setattr__(self, "delimiter", given)
        if self.decimal is not None and self.decimal not in (".", ","):
            raise ValueError(f"decimal (--decimal) must be . or , got {self.decimal!r}")
        if self.decimal is not None and self.decimal == self.delimiter:
            raise ValueError(
                f"delimiter (--delimiter) and decimal (--decimal) cannot be the same, got {self.decimal!r}"
            )
        if self.encoding is not None:
            try:
                "".encode(self.encoding)  # not all codecs are for text
            except LookupError:
                raise ValueError(
                    f"encoding (--encoding) must be a text encoding such as utf-8, latin-1 or cp1252, got "
                    f"{self.encoding!r}"
                ) from None


def read_csv(path: Path, given: CsvFormat | None = None) -> "pa.Table":
    """Read a CSV file, compressed by gzip or not; the names of the columns are in its first line.

    Numbers may have blanks round them and thousands separators. DatasetError, with what to say, if the file
    is damaged or leaves in doubt how it is to be read.
    """

    given = given or CsvFormat()
    content = _content(path, given.encoding)
    head = bytes(memoryview(content)[:_HEAD]).decode(errors="ignore")
    if match := re.match(r"sep=(.)\r?\n", head):  # a line for Excel, which no other program knows
        given = replace(given, delimiter=given.delimiter or match[1])
        content, head = content.slice(len(match[0].encode())), head[match.end() :]
    if not head.strip():
        raise DatasetError(f"{path}: is empty, not a table with names in its first line")
    delimiter = given.delimiter or _find_delimiter(path, head)
    table = _read(path, content, delimiter, given.decimal or ".")
    decimal = given.decimal or _find_decimal(table)
    if decimal != (given.decimal or "."):
        table = _read(path, content, delimiter, decimal)
    if given.decimal is None:
        _check_no_doubt(path, table, decimal)
    return _convert_texts(table, decimal)


def _read(path: Path, content: "pa.Buffer", delimiter: str, decimal: str) -> "pa.Table":
    """The table with names and texts without blanks round them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pacsv

    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            parse_options=pacsv.ParseOptions(delimiter=delimiter),
            convert_options=pacsv.ConvertOptions(decimal_point=decimal),
        )
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: cannot be read as a table: {say(error)} (its columns are taken to be separated by "
            f"{_DELIMITERS.get(delimiter, repr(delimiter))}; else name the delimiter with --delimiter)"
        ) from error
    columns = [
        pc.utf8_trim_whitespace(column) if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    names = [name.strip() for name in table.column_names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path}: has several columns with the name {list_names(twice)}")
    return pa.table(columns, names=names)


def _content(path: Path, encoding: str | None) -> "pa.Buffer":
    """The text of a file in UTF-8, without a byte order mark."""
    import pyarrow as pa

    if path.name.lower().endswith(".gz"):
        check_signature(path, b"\x1f\x8b", "a gzip file")
        raw = pa.py_buffer(_unpacked(path))
    else:
        check_text(path, "a CSV table")
        check_size(str(path), _COPIES * path.stat().st_size)
        raw = pa.OSFile(str(path)).read_buffer()
    bom = next((bom for bom in _BOMS if raw.slice(0, min(3, raw.size)).to_pybytes().startswith(bom)), b"")
    encoding = encoding or _BOMS.get(bom, "utf-8")
    try:
        if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
            return pa.py_buffer(raw.to_pybytes().decode(encoding).removeprefix("\ufeff").encode())
        decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(raw)
        for start in range(0, raw.size, _CHUNK):  # not as a whole, which would take as much memory again
            decoder.decode(view[start : start + _CHUNK], final=start + _CHUNK >= raw.size)
    except UnicodeError as error:
        raise DatasetError(
            f"{path}: is not text in the encoding {encoding} ({error}); say which it is with --encoding, "
            "such as latin-1 or cp1252"
        ) from error
    return raw.slice(len(bom)) if bom == codecs.BOM_UTF8 else raw


def _unpacked(path: Path) -> bytearray:
    """The content of a gzip file, which does not tell how large it is: no more is unpacked than fits."""
    available = available_memory()
    content = bytearray()
    try:
        with gzip.open(path) as stream:
            while block := stream.read(_CHUNK):
                check_size(str(path), _COPIES * (len(content) + len(block)), available)
                content += block
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{path}: cannot be read as a table: the gzip file is cut off or damaged ({say(error)})"
        ) from error
    return content


# ---- what is found out


def _find_delimiter(path: Path, head: str) -> str:
    """The delimiter that splits the first lines into equally many columns, more than one."""
    lines = [line for line in head.splitlines()[:20] if line.strip()]
    if len(lines) > 1 and len(head) >= _HEAD // 2:
        lines = lines[:-1]  # it may be cut off
    counts = {mark: {_without_quotes(line).count(mark) for line in lines} for mark in _DELIMITERS}
    fitting = [mark for mark, found in counts.items() if len(found) == 1 and found != {0}]
    in_header = [mark for mark in _DELIMITERS if lines and mark in _without_quotes(lines[0])]
    if len(fitting) > 1:
        fitting = [mark for mark in fitting if mark in in_header]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and len(in_header) <= 1:
        return in_header[0] if in_header else ","
    names = " or ".join(_DELIMITERS[mark] for mark in (fitting or in_header))
    raise DatasetError(
        f"{path}: its columns may be separated by {names}; say which with --delimiter (spi data convert)"
    )


def _without_quotes(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _find_decimal(table: "pa.Table") -> str:
    """The decimal mark of the first column that is of numbers with one mark only."""
    for texts in _texts(table).values():
        if len(fits := _fitting_marks(texts)) == 1:
            return fits[0]
    return "."


def _check_no_doubt(path: Path, table: "pa.Table", decimal: str) -> None:
    """Refuse numbers whose other mark may separate thousands, or decimals, where nothing tells which."""
    other = "," if decimal == "." else "."
    doubtful: tuple[str, str] | None = None
    for name, texts in _texts(table).items():
        fits = _fitting_marks(texts)
        example = next((text for text in texts if other in text), None)
        if example is not None and fits == [decimal]:
            return  # in this column it separates thousands
        if example is not None and len(fits) == 2:
            doubtful = doubtful or (name, example)
    if doubtful:
        mark = "comma" if other == "," else "point"
        raise DatasetError(
            f"{path}: column {doubtful[0]!r} holds {doubtful[1]!r}, whose {mark} may separate decimals or "
            "thousands; say which with --decimal , or --decimal . (spi data convert)"
        )


def _convert_texts(table: "pa.Table", decimal: str) -> "pa.Table":
    """Turn columns of texts into numbers where all of them are numbers in another notation."""
    import pyarrow as pa

    for name, texts in _texts(table).items():
        if not texts or not _are_numbers(texts, decimal):
            continue
        plain = str.maketrans(
            decimal, ".", _THOUSANDS + (",." if decimal == "." else ".,").replace(decimal, "")
        )
        numbers = [
            None if text in (None, "") else float(text.translate(plain)) for text in table[name].to_pylist()
        ]
        table = table.set_column(table.column_names.index(name), name, pa.array(numbers, pa.float64()))
    return table


def _texts(table: "pa.Table") -> dict[str, list[str]]:
    """The different texts of each column of texts, empty ones left out."""
    import pyarrow as pa

    return {
        field.name: [text for text in table.column(k).unique().to_pylist() if text]
        for k, field in enumerate(table.schema)
        if pa.types.is_string(field.type)
    }


def _fitting_marks(texts: list[str]) -> list[str]:
    return [mark for mark in (".", ",") if _are_numbers(texts, mark)]


def _are_numbers(texts: list[str], decimal: str) -> bool:
    """Whether all texts are numbers with this decimal mark, thousands separated or not."""
    other = "," if decimal == "." else "."
    thousands = rf"[1-9]\d{{0,2}}([{other}{_THOUSANDS}])\d{{3}}(?:\1\d{{3}})*"
    number = re.compile(rf"[+-]?(?:{thousands}|\d*)(?:\{decimal}\d*)?(?:[eE][+-]?\d+)?")
    return all(number.fullmatch(text) and any(map(str.isdigit, text)) for text in texts)
