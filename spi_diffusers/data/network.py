"""The Hub: retries, what its errors mean, and access tokens."""

import logging
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from spi_diffusers.messages import USED_TOKENS, hide_tokens, say

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds before the second attempt; doubled with every further one, up to 30.
FIRST_PAUSE = 1.0
#: Seconds that the Hub may ask to wait; its limits count the requests of five minutes.
_LONGEST_PAUSE = 300.0
#: Errors of the HTTP library about the request itself, which stays as it is.
_LASTING = ("LocalProtocolError", "UnsupportedProtocol", "InvalidURL")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server is busy or broken, or the connection failed."""
    from huggingface_hub.errors import HfHubHTTPError

    if status := _status(error):
        return status >= 500 or status in (408, 429)
    if isinstance(error, HfHubHTTPError):
        return False
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return True  # the client's words for an answer that was cut short
    # The client's HTTP library is httpx or httpx2, depending on its version; it is not a dependency of ours.
    kind = type(error)
    is_request = kind.__module__.startswith("httpx") and kind.__name__ not in _LASTING
    return is_request or isinstance(error, ConnectionError | TimeoutError)


def is_refused(error: BaseException) -> bool:
    """Whether the Hub has done nothing but ask to wait, so that even a change may be asked for again."""
    return _status(error) == 429


def _status(error: BaseException) -> int:
    """The HTTP status behind an error, also where the client has looked into its cache in vain; else 0."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error
    is_answer = isinstance(error, HfHubHTTPError) and error.response is not None
    return int(error.response.status_code) if is_answer else 0  # type: ignore[attr-defined]


def _asked_pause(error: BaseException) -> float:
    """Seconds that the Hub asks to wait before the next request; 0 where it does not say."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if re.fullmatch(r"\d{1,9}", asked) else 0.0


def with_retries(
    call: Callable[[], Result],
    *,
    what: str,
    attempts: int = 4,
    progress: Callable[[], float] | None = None,
    passes: Callable[[BaseException], bool] = is_transient,
) -> Result:
    """Call something, and again while the error may pass: the one retry of this package.

    The client's offline mode does not pass while this process runs. `what` names the call in messages.
    `passes` tells which errors may pass; where the call changes something, only `is_refused`. `attempts`
    counts from the last attempt that made progress, by the growing number that `progress` returns: an attempt
    that got further is worth another, whatever ended it.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    failures, reached = 0, progress() if progress else 0.0
    while True:
        try:
            return call()
        except Exception as error:
            now = progress() if progress else 0.0
            failures = 1 if now > reached else failures + 1
            may_pass = passes(error) and not isinstance(error, OfflineModeIsEnabled)
            pause = max(min(FIRST_PAUSE * 2 ** (failures - 1), 30.0), _asked_pause(error))
            if failures >= attempts or not (may_pass or now > reached) or pause > _LONGEST_PAUSE:
                raise
            reached = now
            logger.warning("%s failed (%s); trying again in %.0f s.", what, say(error), pause)
            time.sleep(pause)


def fetch_snapshot(repo_id: str, *, token: str | bool | None = None, **options: Any) -> Path:
    """The folder in the Hub client's cache with files of a repository, fetched with retries.

    What is cached serves where the Hub cannot be reached. Options and errors: `snapshot_download`'s.
    """
    from huggingface_hub import snapshot_download

    options |= {"token": clean_token(token), "library_name": "spi-diffusers"}
    load = partial(snapshot_download, repo_id, **options)
    return Path(with_retries(load, what=f"Loading {repo_id}"))


def clean_token(token: str | bool | None) -> str | bool | None:
    """An access token without the blanks that come with copying; None for an empty one.

    ValueError, which does not show it, if it has characters that no token has: they would fail in a header,
    in an error that does. Where none is given, the one that the Hub's client takes is looked at.
    """
    from huggingface_hub import get_token

    used = (token if isinstance(token, str) else get_token() or "").strip()
    if len(used) >= 6:
        USED_TOKENS.add(used)
    if not re.fullmatch(r"[!-~]*", used):
        source = "--token" if isinstance(token, str) else "HF_TOKEN, or that of `hf auth login`"
        raise ValueError(f"the access token ({source}) holds a blank or another character that no token has")
    return used or None if isinstance(token, str) else token


def explain(error: BaseException) -> str:
    """Say what an error of the Hub's clients means for the user: part of a sentence, without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            return explain(cause)
        why = "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else say(cause)
        return f"the Hub cannot be reached ({why}), and the cache does not hold it"
    if isinstance(error, LocalTokenNotFoundError):
        return "no access token: log in with `hf auth login`, or give --token"
    if not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, HfHubHTTPError):
        return f"{error}: {explain(error.__cause__)}".replace(".: ", ": ")  # the upload of one file
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return say(error)
    status = error.response.status_code
    text = hide_tokens(error.server_message or "") or say(error)
    if isinstance(error, GatedRepoError):
        folder = "datasets/" if getattr(error, "repo_type", None) == "dataset" else ""
        name = getattr(error, "repo_id", None)
        page = f"{constants.ENDPOINT}/{folder}{name}" if name else "its page on the Hub"
        return f"access must be asked for on {page}; then log in with `hf auth login`, or give --token"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled this repository"
    if status == 401 and "not found" in text.lower():  # the Hub does not tell private from missing
        return (
            "there is no such repository, or it is private and there is no access token for it: check the "
            "name, log in with `hf auth login`, or give --token"
        )
    if status == 401:
        return (
            f"the Hub does not accept the access token, or there is none ({text}): log in with "
            "`hf auth login`, or give --token"
        )
    if status == 403:
        return (
            f"the access token does not allow it ({text}): use one that may read this repository, or, to "
            "publish, write to its organization"
        )
    if status == 409:
        return f"somebody else has made it at the same moment ({text})"
    if status == 412:
        return (
            "somebody else has changed the branch meanwhile; run it again to compare with what is there now"
        )
    if status == 429:
        after = error.response.headers.get("Retry-After")
        return f"the Hub asks to wait{f' {after} s' if after else ''} (too many requests)"
    if status >= 500:
        return f"the Hub has an internal error ({status}); try again later"
    return text
