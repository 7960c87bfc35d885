import json
import shutil
from pathlib import Path

import pytest
import yaml
from data_factory import make_dataset, tree
from huggingface_hub import DatasetCard

from spi_diffusers.data.card import BEGIN, END, make_card, read_card, read_stats, refresh_header
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import write_parquet_dataset

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")
FOLDER = Path(__file__).resolve().parents[2] / "datasets"


def card_with(**header):
    lines = [f"{name}: {value}" for name, value in header.items()]
    return DatasetCard("\n".join(["---", *lines, "---", "# words"]))


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        *((999, "n<1K"), (1000, "1K<n<10K"), (10**5 - 1, "10K<n<100K"), (10**5, "100K<n<1M")),
        *((1_225_609, "1M<n<10M"), (10**7, "10M<n<100M"), (10**8, "100M<n<1B"), (10**9, "1B<n<10B")),
        *((10**10, "10B<n<100B"), (10**11, "100B<n<1T"), (10**12, "n>1T")),
    ],
)
def test_the_size_is_that_of_all_configs_in_the_hubs_categories(rows, category):
    card = card_with(size_categories="[n<1K]")
    refresh_header(card, [{"num_transitions": 500}, {"num_transitions": rows - 500}])
    assert card.data["size_categories"] == [category]


@pytest.mark.parametrize(
    ("given", "licenses", "expected"),
    [
        ("mit", ("mit", "mit"), "mit"),
        ("mit", ("mit", "unknown"), ["mit", "unknown"]),
        ("[mit, unknown]", ("mit", "mit", "unknown"), ["mit", "unknown"]),
        ("apache-2.0", ("mit", "unknown"), "apache-2.0"),  # somebody's own words
        ("", ("mit",), "mit"),
    ],
)
def test_the_licence_is_that_of_all_configs(given, licenses, expected):
    card = card_with(license=given)
    refresh_header(card, [{"num_transitions": 1, "license": license} for license in licenses])
    assert card.data["license"] == expected


def test_the_committed_card_is_what_is_written_today():
    tasks = sorted(read_stats(FOLDER), key=lambda task: task["config"])
    card = make_card(tasks, FOLDER / "README.md", location="datasets")
    assert card.data["size_categories"] == read_card(FOLDER / "README.md").data["size_categories"]
    assert str(card).rstrip() + "\n" == (FOLDER / "README.md").read_text(encoding="utf-8")


# ---- as it is written


def test_card(written):
    text = (written / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["configs"] == [
        {
            "config_name": BALL.name,
            "data_files": [{"split": "train", "path": f"{BALL.name}/train-*.parquet"}],
        }
    ]
    assert header["license"] == "cc-by-4.0"
    assert header["task_categories"] == ["reinforcement-learning"]
    stats = json.loads((written / BALL.name / "stats.json").read_text())
    for words in ["By *hand*.", "Source: a test", "| 3 | 9 | 8 / 2 |", stats["sha256"], "cost_return.png"]:
        assert words in text
    assert (written / BALL.name / "cost_return.png").read_bytes().startswith(b"\x89PNG")


def test_second_task_is_added_beside_the_first_and_words_on_the_card_stay(written):
    readme = written / "README.md"
    readme.write_text(
        readme.read_text().replace("license: cc-by-4.0", "license: mit\nmine: 1") + "\nMy words.\n"
    )
    before = tree(written / BALL.name)
    car = make_dataset(task=CAR_RUN, observation_dim=7, seed=5)
    write_parquet_dataset(car, written)
    assert tree(written / BALL.name) == before
    assert load_transitions(written, "carrun").sha256 == car.sha256
    assert load_transitions(written, "ballcircle").num_episodes == 3
    text = readme.read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert [config["config_name"] for config in header["configs"]] == [BALL.name, CAR_RUN.name]
    assert (header["license"], header["mine"]) == ("mit", 1)
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.count("## OfflineCarRun-v0") == text.count("## OfflineBallCircle-v0") == 1
    assert "By *hand*." in text
    assert text.endswith("My words.\n")


def header_of(written):
    return yaml.safe_load((written / "README.md").read_text().split("---")[1])


def test_size_and_licence_in_the_header_follow_the_configs(tmp_path):
    folder = tmp_path / "set"
    long = make_dataset(task=CAR_RUN, observation_dim=7, lengths=(600, 500))

    def write(dataset, license):
        write_parquet_dataset(dataset, folder, license=license, overwrite=True)
        header = header_of(folder)
        return header["size_categories"], header["license"]

    assert write(make_dataset(task=BALL), "mit") == (["n<1K"], "mit")
    assert write(long, "mit") == (["1K<n<10K"], "mit")
    assert write(long, "cc-by-4.0") == (["1K<n<10K"], ["cc-by-4.0", "mit"])
    assert write(make_dataset(task=BALL), "cc-by-4.0") == (["1K<n<10K"], "cc-by-4.0")
    assert write(make_dataset(task=CAR_RUN, observation_dim=7), "cc-by-4.0") == (["n<1K"], "cc-by-4.0")


def test_config_that_was_removed_by_hand(written):
    """Loading says which one is missing, and the next writing takes it off the card; others' stay."""
    readme = written / "README.md"
    foreign = "configs:\n- config_name: aaa\n  data_files: other/*.csv\n"
    readme.write_text(readme.read_text().replace("configs:\n", foreign))
    write_parquet_dataset(make_dataset(task=CAR_RUN, observation_dim=7, seed=5), written)
    shutil.rmtree(written / BALL.name)
    with pytest.raises(DatasetError, match=r"README.md: declares the config 'OfflineBallCircle-v0', but"):
        load_transitions(written, "carrun")
    write_parquet_dataset(make_dataset(task=CAR_RUN, observation_dim=7, seed=6), written, overwrite=True)
    header = yaml.safe_load(readme.read_text().split("---")[1])
    assert [config["config_name"] for config in header["configs"]] == [CAR_RUN.name, "aaa"]
    assert "## OfflineBallCircle-v0" not in readme.read_text()


def test_a_card_that_the_disk_does_not_give_back_is_named(tmp_path):
    (tmp_path / "README.md").symlink_to("/proc/self/mem")  # opens, and cannot be read
    with pytest.raises(DatasetError, match=r"README\.md: .*Input/output error"):
        read_card(tmp_path / "README.md")


def test_unreadable_card_stops_before_anything_changes(written):
    (written / "README.md").write_text("---\nconfigs: [\n---\n")
    before = tree(written)
    with pytest.raises(DatasetError, match=r"README\.md: the YAML header cannot be read"):
        write_parquet_dataset(make_dataset(task=CAR_RUN, observation_dim=7), written)
    assert tree(written) == before
    assert [path.name for path in written.parent.iterdir()] == ["set"]


def test_names_that_stand_for_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="dsrl: is a reserved name of a dataset"):
        write_parquet_dataset(make_dataset(task=BALL), "dsrl")
    folder = write_parquet_dataset(make_dataset(task=BALL), tmp_path / "dsrl")
    assert 'load_transitions("./dsrl"' in (folder / "README.md").read_text()


def test_a_card_without_the_end_of_our_part_is_left_alone(written):
    readme = written / "README.md"
    readme.write_text(readme.read_text().replace(END, "") + "\n## My own words\n")
    before = tree(written)
    with pytest.raises(DatasetError, match=r"README\.md: the line .* is missing after"):
        write_parquet_dataset(make_dataset(task=CAR_RUN, observation_dim=7), written)
    assert tree(written) == before
