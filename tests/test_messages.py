from spi_diffusers.messages import say, shown


def test_a_value_is_shown_on_one_line_of_at_most_200_characters():
    assert shown(["a", 1]) == "['a', 1]"
    assert shown("x" * 1000) == f"'{'x' * 196}..."


def test_an_error_is_part_of_one_line():
    assert say(ValueError("two\n  lines.")) == "ValueError: two lines"
    assert say(TimeoutError()) == "TimeoutError"
    assert len(say(ValueError("x" * 1000))) < 450
