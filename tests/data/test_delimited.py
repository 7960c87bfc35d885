"""CSV files as other programs write them."""

import gzip
import re

import numpy as np
import pytest

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.delimited import CsvFormat, read_csv
from spi_diffusers.data.loading import load_tables
from spi_diffusers.data.roles import ColumnNames

PLAIN = "obs_0,action_0,reward,cost,episode\n0.5,-1.25,2,0,a\n1.5,1e-3,3,1,a\n-.5,0.25,4,0,b\n"
ROWS = [[0.5, -1.25, 2, 0, "a"], [1.5, 1e-3, 3, 1, "a"], [-0.5, 0.25, 4, 0, "b"]]


def rows(path, **given):
    table = read_csv(path, CsvFormat(**given))
    assert table.column_names == ["obs_0", "action_0", "reward", "cost", "episode"]
    return [list(row.values()) for row in table.to_pylist()]


SAME = {
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "decimal commas and tabs": PLAIN.replace(",", "\t").replace(".", ","),
    "decimal commas in quotes": re.sub(r"[-\d]*\.\d+", lambda m: f'"{m[0]}"', PLAIN)
    .replace(".", "@")
    .replace("@", ","),
    "blanks": PLAIN.replace(",", " ,  ").replace("\n", "  \n"),
    "quotes": re.sub(r"[^,\n]+", lambda m: f'"{m[0]}"', PLAIN),
    "byte order mark": "\ufeff" + PLAIN,
    "carriage returns": PLAIN.replace("\n", "\r\n"),
    "plus signs": PLAIN.replace("1.5", "+1.5"),
    "no last newline": PLAIN[:-1],
    "a line for Excel": "sep=;\r\n" + PLAIN.replace(",", ";"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
@pytest.mark.parametrize("name", ["log.csv", "LOG.CSV", "log.csv.gz", "LOG.CSV.GZ"])
def test_the_same_rows_however_they_are_written(tmp_path, text, name):
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert rows(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("cells", "given"),
    [
        (["1,234.5", "-12,345,678.25", "7.5"], {}),
        (["1.234,5", "-12.345.678,25", "7,5"], {}),
        (["1 234,5", "-12 345 678,25", "7,5"], {}),
        (["1\u00a0234,5", "-12\u00a0345\u00a0678,25", "7,5"], {}),
        (["1'234.5", "-12'345'678.25", "7.5"], {}),
        (["1\u2019234.5", "-12\u2019345\u2019678.25", "7.5"], {}),
        (["1,234.5", "-12,345,678.25", "7.5"], {"decimal": "."}),
    ],
)
def test_thousands(tmp_path, cells, given):
    (tmp_path / "x.csv").write_text("a;b\n" + "".join(f"{cell};1\n" for cell in cells), encoding="utf-8")
    table = read_csv(tmp_path / "x.csv", CsvFormat(**given))
    assert table["a"].to_pylist() == [1234.5, -12345678.25, 7.5]


def test_a_comma_that_may_be_either_is_asked_for(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a;b\n1,234;1\n2,345;2\n")
    with pytest.raises(DatasetError, match=r"x\.csv: column 'a' holds '1,234', whose comma may.*--decimal"):
        read_csv(path)
    assert read_csv(path, CsvFormat(decimal=","))["a"].to_pylist() == [1.234, 2.345]
    assert read_csv(path, CsvFormat(decimal="."))["a"].to_pylist() == [1234, 2345]
    path.write_text("a;b\n1,234;1,5\n2,345;2\n")  # another column leaves no doubt
    assert read_csv(path)["a"].to_pylist() == [1.234, 2.345]
    path.write_text("a;b\n1,234;12,345,678\n2,345;2\n")
    assert read_csv(path)["a"].to_pylist() == [1234, 2345]


@pytest.mark.parametrize(
    ("cells", "word", "answers"),
    [
        ("1.234;0,5", "'1.234', whose point", {",": [1234, 0.5], ".": [1.234, "0,5"]}),
        ("1,234;1.5", "'1,234', whose comma", {",": [1.234, "1.5"], ".": [1234, 1.5]}),
        ("-1.000;0,5", "'-1.000', whose point", {",": [-1000, 0.5], ".": [-1, "0,5"]}),
    ],
)
def test_a_mark_that_another_column_contradicts_is_asked_for(tmp_path, cells, word, answers):
    path = tmp_path / "x.csv"
    path.write_text(f"a;b\n{cells}\n")
    with pytest.raises(DatasetError, match=rf"x\.csv: column 'a' holds {re.escape(word)} may.*--decimal"):
        read_csv(path)
    for decimal, values in answers.items():
        assert [*read_csv(path, CsvFormat(decimal=decimal)).to_pylist()[0].values()] == values


@pytest.mark.parametrize(
    "text", ["t;a\n0.123;0,5\n0.456;0,7\n", "b;v\n0,123;1.5\n", "b;v\n-0,123;1.5\n", "b;v\n00,123;1.5\n"]
)
def test_thousands_never_begin_with_zero(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    values = [value for row in read_csv(tmp_path / "x.csv").to_pylist() for value in row.values()]
    assert not any(isinstance(value, float) and abs(value) >= 100 for value in values)
    assert any(isinstance(value, str) for value in values)  # refused where it is used as a number


def test_zero_and_decimals_are_no_thousands(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n0,123;1\n1,234;2\n")
    assert read_csv(tmp_path / "x.csv")["a"].to_pylist() == [0.123, 1.234]


def test_two_decimal_marks_are_not_mixed_up(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("obs;act;reward;cost;episode\n1,5;2.5;1;0;a\n1,5;2.5;1;0;a\n")
    with pytest.raises(DatasetError, match=r"x\.csv: column 'act' must hold numbers, not string such as '2"):
        load_tables(path, columns=ColumnNames(observation=("obs",), action=("act",)))


def test_a_delimiter_that_is_in_doubt_is_asked_for(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a;b,c\n1;2,3\n4;5,6\n")
    with pytest.raises(DatasetError, match=r"x\.csv: its columns may .* commas or semicolons.*--delimiter"):
        read_csv(path)
    assert read_csv(path, CsvFormat(delimiter=",")).column_names == ["a;b", "c"]
    assert read_csv(path, CsvFormat(delimiter=";")).column_names == ["a", "b,c"]
    path.write_text("a b\n1 2\n")
    assert read_csv(path, CsvFormat(delimiter=" "))["b"].to_pylist() == [2]
    path.write_text("a\tb\n1\t2\n")
    assert read_csv(path, CsvFormat(delimiter="\\t"))["b"].to_pylist() == [2]


def test_encodings(tmp_path):
    text = "höhe,gas\n1,2\n"
    for encoding, given in (("utf-8", None), ("utf-16", None), ("latin-1", "latin-1"), ("cp1252", "cp1252")):
        (tmp_path / "x.csv").write_bytes(text.encode(encoding))
        assert read_csv(tmp_path / "x.csv", CsvFormat(encoding=given)).column_names == ["höhe", "gas"]
    for content in (text.encode("latin-1"), "a,b\n1,gr\u00fcn\n".encode("latin-1")):
        for name in ("log.csv", "log.csv.gz"):
            (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
            with pytest.raises(DatasetError, match=rf"{name}: is not text in the encoding utf-8.*--encoding"):
                read_csv(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"delimiter": ""}, r"delimiter \(--delimiter\) must be one character"),
        ({"delimiter": ";;"}, r"delimiter \(--delimiter\) must be one character"),
        ({"delimiter": '"'}, r"delimiter \(--delimiter\) must be one character"),
        ({"decimal": ";"}, r"decimal \(--decimal\) must be"),
        ({"delimiter": ",", "decimal": ","}, r"delimiter .* and decimal .* the same"),
        ({"encoding": "utf-9"}, r"encoding \(--encoding\) must be a text encoding"),
        ({"encoding": "zlib"}, r"encoding \(--encoding\) must be a text encoding"),
    ],
)
def test_formats_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        CsvFormat(**given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, not a table"),
        (b"\n\n", "is empty, not a table"),
        (b"a,b\n1,2\n3\n", "cannot be read as a table: .*Expected 2 columns, got 1.*--delimiter"),
        (b"a,b\n1,5,2,5\n", "cannot be read as a table: .*Expected 2 columns, got 4.*--delimiter"),
        (b"x, x\n1,2\n", "has several columns with the name 'x'"),
        (b"a;b\n1;2\n" * 3 + b"\x00", "cannot be read|has several"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"x\.csv: {message}"):
        read_csv(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("content", "is_"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer; fetch",
        ),
        (b"<!doctype html><title>Log in</title>", "an HTML or XML page"),
        (b"PK\x03\x04 and so on", "a zip archive"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv"])
def test_other_files_by_the_name_of_a_table(tmp_path, content, is_, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{re.escape(name)}: is not a (CSV table|gzip file) but {is_}"):
        read_csv(tmp_path / name)


@pytest.mark.parametrize(
    "change", [lambda content: content[:-9], lambda content: content[:99] + content[120:]]
)
def test_gzip_that_is_damaged(tmp_path, change):
    (tmp_path / "x.csv.gz").write_bytes(change(gzip.compress(PLAIN.encode() * 50)))
    with pytest.raises(DatasetError, match=r"x\.csv\.gz: cannot be read as a table: "):
        read_csv(tmp_path / "x.csv.gz")


def test_gzip_that_unfolds_to_more_than_memory_is_not_unfolded(tmp_path, little_memory):
    with gzip.open(tmp_path / "x.csv.gz", "wb", compresslevel=1) as stream:
        stream.write(b"a,b\n")
        for _ in range(6):
            stream.write(b"1,2\n" * (1 << 18))
    with pytest.raises(DatasetError, match=r"x\.csv\.gz: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        read_csv(tmp_path / "x.csv.gz")


def test_numbers_of_all_rows_are_the_same_as_numpys(tmp_path):
    values = np.random.default_rng(0).normal(size=(500, 3))
    np.savetxt(tmp_path / "x.csv", values, delimiter=";", header="a;b;c", comments="")
    text = (tmp_path / "x.csv").read_text().replace(".", ",")
    (tmp_path / "y.csv").write_text(text)
    for name in ("x.csv", "y.csv"):
        table = read_csv(tmp_path / name)
        assert np.stack([column.to_numpy() for column in table.columns], axis=1).tolist() == values.tolist()
