"""Passing troubles of the network: telling them from lasting ones, and trying again."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server is busy or broken, or the connection failed.

    Args:
        error: what a request to the Hub raised.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status >= 500 or status in (408, 429)
    # The client's HTTP library is httpx or httpx2, depending on its version; it is not a dependency of ours.
    library = type(error).__module__.partition(".")[0]
    return library.startswith("httpx") or isinstance(error, ConnectionError | TimeoutError)


def with_retries(call: Callable[[], Result], *, what: str, attempts: int = 4, wait: float = 1.0) -> Result:
    """Call something that only reads, and again while what it raises may pass.

    The client's offline mode is a lack of connection that does not pass while this process runs.

    Args:
        call: takes nothing; may be called several times.
        what: what it does, for messages.
        attempts: how often at most.
        wait: seconds before the second call; doubled with every further one, up to 30.

    Returns:
        What `call` returned.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    for attempt in range(1, attempts):
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or isinstance(error, OfflineModeIsEnabled):
                raise
            pause = min(wait * 2 ** (attempt - 1), 30.0)
            logger.warning("%s failed (%s); trying again in %.0f s.", what, say(error), pause)
            time.sleep(pause)
    return call()


def say(error: BaseException) -> str:
    """An error as a part of one line of text: its type and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
