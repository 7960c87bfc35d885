from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from spi_diffusers.data.card import make_card, read_card, refresh_header
from spi_diffusers.data.writing import read_stats

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
