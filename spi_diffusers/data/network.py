"""Network and Hub errors: retries and messages."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds before the second attempt; doubled with every further one, up to 30.
FIRST_PAUSE = 1.0


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server is busy or broken, or the connection failed."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status >= 500 or status in (408, 429)
    # The client's HTTP library is httpx or httpx2, depending on its version; it is not a dependency of ours.
    library = type(error).__module__.partition(".")[0]
    return library.startswith("httpx") or isinstance(error, ConnectionError | TimeoutError)


def with_retries(
    call: Callable[[], Result],
    *,
    what: str,
    attempts: int = 4,
    progress: Callable[[], float] | None = None,
) -> Result:
    """Call something that reads, and again while the error may pass: the one retry of this package.

    The client's offline mode does not pass while this process runs. `what` names the call in messages.
    `attempts` counts from the last attempt that made progress, by the growing number that `progress` returns:
    an attempt that got further is worth another, whatever ended it.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    failures, reached = 0, progress() if progress else 0.0
    while True:
        try:
            return call()
        except Exception as error:
            now = progress() if progress else 0.0
            failures = 1 if now > reached else failures + 1
            may_pass = is_transient(error) and not isinstance(error, OfflineModeIsEnabled)
            if failures >= attempts or not (may_pass or now > reached):
                raise
            reached = now
            pause = min(FIRST_PAUSE * 2 ** (failures - 1), 30.0)
            logger.warning("%s failed (%s); trying again in %.0f s.", what, say(error), pause)
            time.sleep(pause)


def say(error: BaseException) -> str:
    """An error as a part of one line of text: its type and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")


def explain(error: BaseException) -> str:
    """Say what an error of the Hub's clients means for the user: part of a sentence, without a full stop."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return "no access token: log in with `hf auth login`, or give --token"
    if not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, HfHubHTTPError):
        return f"{error}: {explain(error.__cause__)}".replace(".: ", ": ")  # the upload of one file
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return say(error)
    status = error.response.status_code
    text = error.server_message or say(error)
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
        return f"the access token does not allow it ({text}): use one with write access to that organization"
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
