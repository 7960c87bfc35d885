import re

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from spi_diffusers.data.network import explain, is_transient, say, with_retries


def http_error(status):
    return HfHubHTTPError("no", response=httpx2.Response(status, request=httpx2.Request("GET", "http://x")))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((http_error(status), True) for status in (408, 429, 500, 503)),
        *((http_error(status), False) for status in (400, 401, 404, 412)),
        (httpx2.ReadTimeout("slow"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError(), True),
        (FileNotFoundError("gone"), False),
        (ValueError("wrong"), False),
    ],
)
def test_what_may_pass(error, expected):
    assert is_transient(error) is expected


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("spi_diffusers.data.network.FIRST_PAUSE", 0.001)


def test_calls_are_repeated_while_that_may_help():
    def calling(*outcomes):
        left = list(outcomes)

        def call():
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return call, left

    call, left = calling(TimeoutError(), http_error(503), 7, 8)
    assert with_retries(call, what="it") == 7
    assert left == [8]
    call, left = calling(TimeoutError(), ValueError("wrong"), 7)
    with pytest.raises(ValueError, match="wrong"):
        with_retries(call, what="it")
    assert left == [7]
    call, left = calling(*[TimeoutError()] * 5)
    with pytest.raises(TimeoutError):
        with_retries(call, what="it", attempts=3)
    assert len(left) == 2


def test_an_attempt_that_got_further_is_worth_going_on_with():
    done, outcomes = [], ["some", ValueError, "more", OSError, TimeoutError, TimeoutError, TimeoutError]

    def call():
        if isinstance(outcomes[0], str):
            done.append(outcomes.pop(0))
        raise outcomes.pop(0)

    with pytest.raises(TimeoutError):
        with_retries(call, what="it", attempts=3, progress=lambda: len(done))
    assert (done, len(outcomes)) == (["some", "more"], 1)


def test_an_error_is_part_of_one_line():
    assert say(ValueError("two\n  lines.")) == "ValueError: two lines"
    assert say(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("status", "server_says", "expected"),
    [
        (401, "Repository not found", "there is no such repository, or it is private"),
        (401, "Invalid credentials", r"does not accept the access token.*\(Invalid credentials\)"),
        (403, "read only", r"does not allow it \(read only\)"),
        (404, "Entry not found", "^Entry not found$"),
        (503, "busy", r"internal error \(503\); try again later"),
    ],
)
def test_what_the_hub_answers_is_told_with_what_to_do(status, server_says, expected):
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://x"))
    assert re.search(expected, explain(HfHubHTTPError("no", response=response, server_message=server_says)))
