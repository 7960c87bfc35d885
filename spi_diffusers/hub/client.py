"""Requests to the Hub: with retries, and errors that say what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from huggingface_hub import HfApi

from spi_diffusers.data.network import clean_token, explain, is_refused, with_retries


class HubError(RuntimeError):
    """Something on the Hub cannot be read or changed; the message names it and says what to do."""


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever huggingface_hub and its HTTP library raise into a HubError: `what` failed, and why."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # they raise many unrelated types
        raise HubError(f"{what}: {explain(error)}{advice}") from error


def hub_api(token: str | bool | None) -> HfApi:
    """A client of the Hub that says who it is; ValueError if the token cannot be one."""
    return HfApi(token=clean_token(token), library_name="spi-diffusers")


def read(call: Callable[..., Any], repo_id: str, *args: Any, **kwargs: Any) -> Any:
    """A request that changes nothing, with retries."""
    return with_retries(partial(call, repo_id, *args, **kwargs), what=f"{repo_id}: a request to the Hub")


def change(call: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """A request that changes what `name` is the id of; again only where the Hub has refused it for now."""
    asked = partial(call, name, *args, **kwargs)
    return with_retries(asked, what=f"{name}: a change on the Hub", passes=is_refused)
