import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from data_factory import make_dataset

from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import TRAIN_FILE, write_parquet_dataset

BALL = get_task("ballcircle")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_parquet_dataset(make_dataset(task=BALL), tmp_path_factory.mktemp("template") / "set")


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "set")


def rewrite(folder, change):
    path = folder / BALL.name / TRAIN_FILE
    pq.write_table(change(pq.read_table(path)), path)


def replace(name, values):
    def change(table):
        return table.set_column(table.column_names.index(name), name, values)

    return change


@pytest.mark.parametrize("name", COLUMNS)
def test_missing_column_names_the_file(folder, name):
    rewrite(folder, lambda table: table.drop_columns([name]))
    with pytest.raises(DatasetError, match=rf"{TRAIN_FILE}: column '{name}' is missing; the file has"):
        load_transitions(folder, BALL)


def test_other_columns_are_not_read(folder):
    pictures = pa.array([b"x" * 1000] * 9)
    rewrite(folder, lambda table: table.append_column("camera", pictures))
    # Decoded, it would fail: its pages are damaged.
    path = folder / BALL.name / TRAIN_FILE
    content = path.read_bytes()
    assert b"x" * 100 in content
    path.write_bytes(content.replace(b"x" * 100, b"y" * 100))
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256


def test_a_config_in_another_format_is_told_by_it(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: robot\n  data_files: rows.csv\n---\n")
    with pytest.raises(DatasetError, match="config 'robot' is not in parquet files"):
        load_transitions(tmp_path, "robot")


def test_index_columns_may_be_missing(folder):
    rewrite(folder, lambda table: table.drop_columns(["episode_index", "frame_index"]))
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("observation", pa.array([[1.0] * 7] * 9), "has 7 dimensions, but OfflineBallCircle-v0 has 8"),
        ("observation", pa.array([[1.0] * 8] * 8 + [[1.0]]), r"holds lists of different lengths: \[1, 8\]"),
        ("observation", pa.array(range(9)), "has 1 dimensions, but OfflineBallCircle-v0 has 8"),
        (
            "observation",
            pa.array([[1.0] * 8] * 7 + [None] * 2),
            r"has 2 missing values \(null\), first in row 7",
        ),
        (
            "action",
            pa.array([[0.0, 0.0]] * 5 + [[0.0, None]] * 4),
            r"has 4 missing values \(null\).*in row 5",
        ),
        ("action", pa.array([["a", "b"]] * 9), "must hold numbers, not string"),
        ("reward", pa.array([1.0] * 3 + [None] * 6), r"has 6 missing values \(null\), first in row 3"),
        ("reward", pa.array([1.0] * 8 + [float("nan")]), "not finite.*first in row 8"),
        ("reward", pa.array([[1.0]] * 9), "must hold one number per row, not list"),
        ("cost", pa.array(["0"] * 9), "must hold numbers, not string"),
        ("truncated", pa.array([False] * 9), "no episode ends"),
        ("frame_index", pa.array(range(9)), "'frame_index' holds 3 in row 3"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_bad_column(folder, name, values, message):
    rewrite(folder, replace(name, values))
    with pytest.raises(DatasetError, match=rf"{folder} \(OfflineBallCircle-v0\): .*{message}"):
        load_transitions(folder, BALL)


def test_zero_rows(folder):
    rewrite(folder, lambda table: table.slice(0, 0))
    with pytest.raises(DatasetError, match="zero rows"):
        load_transitions(folder)


def test_lists_of_equal_length_and_float64_are_as_good(folder):
    def change(table):
        lists = pa.array(table.column("observation").to_pylist(), type=pa.list_(pa.float64()))
        return replace("observation", lists)(table)

    rewrite(folder, change)
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256


def test_shards_and_row_groups_are_joined_in_order(folder):
    path = folder / BALL.name / TRAIN_FILE
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.slice(0, 4), path.with_name("train-00000-of-00002.parquet"), row_group_size=1)
    pq.write_table(table.slice(4), path.with_name("train-00001-of-00002.parquet"), row_group_size=2)
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256


def test_files_are_in_the_order_of_their_numbers(folder):
    path = folder / BALL.name / TRAIN_FILE
    table = pq.read_table(path)
    for name, rows in (("train-9", table.slice(0, 5)), ("train-10", table.slice(5))):
        pq.write_table(rows, path.with_name(f"{name}.parquet"))
    path.unlink()
    (folder / BALL.name / "stats.json").unlink()
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256
    assert open_stream(folder, BALL, progress=False).sha256 == make_dataset().sha256


@pytest.mark.parametrize(
    "name",
    ["exp [v2]", "{a,b}", "*", "?x*?", "10:30", "a::b", "file:", "'\"$x`", " ü\n", "#%41", "~", "x.zip"],
)
def test_no_folder_is_read_as_a_pattern(template, tmp_path, name):
    folder = shutil.copytree(template, tmp_path / name / "set")
    expected = make_dataset().sha256
    assert load_transitions(folder, BALL).sha256 == expected
    assert open_stream(folder, BALL).sha256 == expected


def declare(folder, **declared):
    header = yaml.safe_dump({"configs": [{"config_name": "c", **declared}]})
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")


@pytest.mark.parametrize(
    "declared",
    [
        {"data_files": f"{BALL.name}/*"},
        {"data_files": [f"./{BALL.name}/{TRAIN_FILE}", f"{BALL.name}/train-*"]},
        {"data_files": {"test": "x/*", "train": [f"{BALL.name}/train-[0-9]*.parquet"]}},
        {"data_files": {"split": "train", "path": "**/train-*"}},
        {"data_files": [{"split": "train", "path": f"{BALL.name}/**"}]},
        {"data_files": "train-*.parquet", "data_dir": BALL.name},
        {"data_dir": BALL.name},
        {},
    ],
)
def test_a_card_names_its_files_in_the_ways_of_the_hub(folder, declared):
    (folder / BALL.name / "episodes.parquet").unlink()
    (folder / BALL.name / "stats.json").unlink()
    (folder / BALL.name / "cost_return.png").unlink()
    (folder / ".cache").mkdir()
    shutil.copy(folder / BALL.name / TRAIN_FILE, folder / ".cache" / TRAIN_FILE)
    shutil.copy(folder / BALL.name / TRAIN_FILE, folder / BALL.name / ".old.parquet")
    declare(folder, **declared)
    assert load_transitions(folder, "c").sha256 == make_dataset().sha256


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (f"../set/{BALL.name}/*.parquet", "only the dataset's own files are read"),
        ("/etc/*.parquet", "only the dataset's own files are read"),
        ("hf://datasets/org/set/x.parquet", "only the dataset's own files are read"),
        ("file:///etc/x.parquet", "only the dataset's own files are read"),
        (f"{BALL.name}/../../*.parquet", "only the dataset's own files are read"),
        ("a**b", "is no pattern of files|has no files for the split"),
        ("none-*.parquet", "has no files for the split 'train'"),
        (f"{BALL.name}/*.json", "is not in parquet files"),
        ([3, None], "has no files for the split 'train'"),
        ({"train": None}, "declares no files for the split 'train'"),
    ],
)
def test_a_card_that_names_other_files_is_refused(folder, pattern, message):
    declare(folder, data_files=pattern)
    with pytest.raises(DatasetError, match=message):
        load_transitions(folder, "c")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(folder, share):
    path = folder / BALL.name / TRAIN_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DatasetError, match=rf"{TRAIN_FILE}: is (empty|not a parquet file, or it is cut off)"):
        load_transitions(folder, BALL)


def test_damaged_page(tmp_path):
    folder = write_parquet_dataset(make_dataset(task=BALL, lengths=(200,) * 5), tmp_path / "set")
    path = folder / BALL.name / TRAIN_FILE
    content = bytearray(path.read_bytes())
    content[5000:6000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{TRAIN_FILE}: is cut off or damaged"):
        load_transitions(folder, BALL)


@pytest.mark.parametrize(
    ("content", "is_"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(5000), "a JPEG image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer; .*git lfs pull"),
        (b"<!doctype html>", "an HTML or XML page"),
    ],
)
def test_foreign_file(folder, content, is_):
    (folder / BALL.name / TRAIN_FILE).write_bytes(content)
    for load in (load_transitions, open_stream):
        with pytest.raises(DatasetError, match=rf"{TRAIN_FILE}: is not a parquet file but {is_}"):
            load(folder, BALL)


def test_file_is_gone(folder):
    (folder / BALL.name / TRAIN_FILE).unlink()
    with pytest.raises(DatasetError, match=rf"{folder}/README.md: declares the config '{BALL.name}'"):
        load_transitions(folder, BALL)


def test_config_that_the_folder_has_not(folder):
    with pytest.raises(
        DatasetError, match=r"no config for task OfflineCarRun-v0\. Available: OfflineBallCircle-v0"
    ):
        load_transitions(folder, "carrun")


def test_several_configs_and_none_named(folder):
    write_parquet_dataset(make_dataset(task=get_task("carrun"), observation_dim=7), folder)
    with pytest.raises(
        DatasetError, match="several tasks; say which one: OfflineBallCircle-v0, OfflineCarRun"
    ):
        load_transitions(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"is not a dataset folder: it has no README\.md.*it holds OfflineBallCircle-v0"),
        ("no header\n", r"README\.md: the YAML header declares no `configs`"),
        ("---\nlicense: mit\n---\n", "declares no `configs`"),
        ("---\nconfigs: [\n---\n", "the YAML header cannot be read"),
        ("---\nconfigs: 3\n---\n", "the YAML header cannot be read"),
        ("---\nconfigs:\n- data_files: x\n---\n", "the YAML header cannot be read"),
        ("---\nconfigs:\n- config_name: [1]\n---\n", "must have names"),
    ],
)
def test_card_that_declares_nothing_usable(folder, text, message):
    readme = folder / "README.md"
    readme.unlink() if text is None else readme.write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_transitions(folder, BALL)


def test_split_that_is_not_train(folder):
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("split: train", "split: test"))
    with pytest.raises(DatasetError, match="declares no files for the split 'train'"):
        load_transitions(folder, BALL)


def test_rows_may_be_links_of_the_user(folder, tmp_path):
    path = folder / BALL.name / TRAIN_FILE
    path.rename(tmp_path / "x.parquet")
    path.symlink_to(tmp_path / "x.parquet")
    assert load_transitions(folder).sha256 == make_dataset().sha256


@pytest.mark.parametrize("form", ["../x.parquet", "{}/x.parquet", "file://{}/x.parquet", "a/../../x.parquet"])
def test_a_card_cannot_name_files_outside_its_folder(folder, tmp_path, form):
    (folder / BALL.name / TRAIN_FILE).rename(tmp_path / "x.parquet")
    header = yaml.safe_dump({"configs": [{"config_name": "d", "data_files": form.format(tmp_path)}]})
    (folder / "README.md").write_text(f"---\n{header}---\n")
    with pytest.raises(DatasetError, match=r"config 'd' takes rows from .*x\.parquet'"):
        load_transitions(folder, "d")
