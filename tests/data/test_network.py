import re

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from spi_diffusers.data.network import (
    clean_token,
    explain,
    is_refused,
    is_transient,
    with_retries,
)
from spi_diffusers.messages import hide_tokens


def http_error(status, headers=None):
    request = httpx2.Request("GET", "http://x")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request, headers=headers or {}))


def in_vain(cause):
    """What the client raises where the Hub fails and the cache has not got it."""
    error = LocalEntryNotFoundError("not in the cache")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((http_error(status), True) for status in (408, 429, 500, 503)),
        *((http_error(status), False) for status in (400, 401, 404, 412)),
        (httpx2.ReadTimeout("slow"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError(), True),
        (FileNotFoundError("gone"), False),
        (in_vain(http_error(503)), True),
        (in_vain(httpx2.ConnectError("no route")), False),
        (httpx2.LocalProtocolError("a header is wrong"), False),
        (httpx2.UnsupportedProtocol("hub://"), False),
        (ValueError("wrong"), False),
        (OSError("Consistency check failed: file should be of size 9 but has size 4 (x)."), True),
        (OSError("Input/output error"), False),
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


@pytest.mark.parametrize(
    ("status", "server_says", "expected"),
    [
        (401, "Repository not found", "there is no such repository, or it is private"),
        (401, "Invalid credentials", r"does not accept the access token.*\(Invalid credentials\)"),
        (403, "read only", r"does not allow it \(read only\)"),
        (404, "Entry not found", "^Entry not found$"),
        (400, "bad header Bearer hf_SECRET123", "^bad header Bearer <token>$"),
        (503, "busy", r"internal error \(503\); try again later"),
    ],
)
def test_what_the_hub_answers_is_told_with_what_to_do(status, server_says, expected):
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://x"))
    assert re.search(expected, explain(HfHubHTTPError("no", response=response, server_message=server_says)))


def test_a_change_is_asked_for_again_only_where_the_hub_has_refused_it(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    left = [http_error(429, {"Retry-After": "7"}), http_error(429), http_error(503), 1]

    def change():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(HfHubHTTPError):
        with_retries(change, what="it", passes=is_refused)
    assert (left, pauses) == ([1], [7.0, 0.002])
    left = [http_error(429, {"Retry-After": "3600"}), 1]
    with pytest.raises(HfHubHTTPError) as caught:
        with_retries(change, what="it")
    assert explain(caught.value) == "the Hub asks to wait 3600 s (too many requests)"


@pytest.mark.parametrize(("kind", "folder"), [("dataset", "datasets/"), ("model", "")])
def test_who_may_not_read_a_gated_repository_is_told_where_to_ask(kind, folder):
    error = GatedRepoError("gated", response=http_error(403).response)
    error.repo_type, error.repo_id = kind, "org/x"
    assert f"access must be asked for on https://huggingface.co/{folder}org/x; then log in" in explain(error)


def test_what_is_not_in_the_cache_is_told_with_the_reason():
    assert explain(in_vain(OfflineModeIsEnabled("off"))) == (
        "the Hub cannot be reached (HF_HUB_OFFLINE is set), and the cache does not hold it"
    )
    assert explain(in_vain(httpx2.ConnectError("no route"))).endswith(
        "reached (ConnectError: no route), and the cache does not hold it"
    )


@pytest.mark.parametrize(
    ("token", "clean"),
    [("hf_a\n", "hf_a"), ("\t hf_a \r\n", "hf_a"), ("", None), (" \n", None), (None, None), (False, False)],
)
def test_a_token_may_have_blanks_round_it(token, clean):
    assert clean_token(token) == clean


@pytest.mark.parametrize("token", ["hf_abcdefgh", "api_org_abcdefgh", "of-my-own-server", "a.jwt+/=="])
def test_a_token_of_any_form_is_hidden_once_it_was_used(token):
    clean_token(f" {token}\n")
    assert (
        hide_tokens(f"GET https://host/x?token={token}: refused")
        == "GET https://host/x?token=<token>: refused"
    )


@pytest.mark.parametrize(
    "token", ["hf_SECRET\nX: y", "hf_SEC RET", "hf_SÉCRET", "hf_\x00SECRET", "\ufeffhf_SECRET"]
)
def test_what_cannot_be_a_token_is_not_shown(token):
    with pytest.raises(ValueError, match="holds a blank or another character") as caught:
        clean_token(token)
    assert "SECRET" not in str(caught.value)


def test_a_token_of_the_environment_is_looked_at_too(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SÉCRET")
    with pytest.raises(ValueError, match=r"access token \(HF_TOKEN.*another character") as caught:
        clean_token(None)
    assert "CRET" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert clean_token(None) is None
    assert "environment" not in hide_tokens("refused: hf_of_the_environment")
