import pytest

from spi_diffusers.messages import decimals, say, shown


def test_a_value_is_shown_on_one_line_of_at_most_200_characters():
    assert shown(["a", 1]) == "['a', 1]"
    assert shown("x" * 1000) == f"'{'x' * 196}..."


@pytest.mark.parametrize(
    ("largest", "text"), [(1234.5, "0.1"), (1.0, "0.1"), (0, "0.1"), (0.5, "0.123"), (0.0061, "0.12346")]
)
def test_figures_below_one_have_three_digits(largest, text):
    assert f"{0.123456:.{decimals(largest)}f}" == text


def test_an_error_is_part_of_one_line():
    assert say(ValueError("two\n  lines.")) == "ValueError: two lines"
    assert say(TimeoutError()) == "TimeoutError"
    assert len(say(ValueError("x" * 1000))) < 450
