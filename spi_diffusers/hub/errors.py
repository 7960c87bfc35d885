"""What goes wrong with the Hub, in words that say what to do."""

from spi_diffusers.data.network import say


class HubError(RuntimeError):
    """Something on the Hub cannot be read or changed; the message names it and says what to do."""


def explain(error: BaseException) -> str:
    """Say what an error of the Hub's clients means for the user.

    Args:
        error: what huggingface_hub or its HTTP library raised.

    Returns:
        Part of a sentence, without a full stop.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return "no access token: log in with `hf auth login`, or give --token"
    if not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, HfHubHTTPError):
        return f"{error}: {explain(error.__cause__)}".replace(".: ", ": ")  # the upload of one file
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return say(error)
    status = error.response.status_code
    text = error.server_message or say(error)
    if status == 401 and "not found" in text.lower():  # what nobody may know of does not exist
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
        return f"the access token does not allow it ({text}): use one with write access to that organisation"
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
