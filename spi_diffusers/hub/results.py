"""Results of policies, from folders and from the Hub, without loading the policies."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.data.network import explain
from spi_diffusers.data.tasks import HUB_ID, Task
from spi_diffusers.evaluation.results import read_diverged, read_results
from spi_diffusers.evaluation.tables import ComparedPolicy
from spi_diffusers.files import EVALUATION_FOLDER, POLICY_FOLDER
from spi_diffusers.hub.errors import HubError

RESULTS = "results.json"


@dataclass(frozen=True)
class PublishedPolicies:
    """What a search on the Hub found.

    Attributes:
        policies: Those with results.
        unreadable: Why the results of others could not be read, by their id.
    """

    policies: list[ComparedPolicy]
    unreadable: dict[str, str]


def read_policy_results(
    policy: str, *, revision: str | None = None, token: str | None = None
) -> ComparedPolicy:
    """Read the results of a policy.

    Args:
        policy: A results file; the folder of a policy, of a run or of an evaluation; or an id on the Hub
            (`org/name`). What exists on disk is never looked up on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: Access token of the Hub.

    Raises:
        FileNotFoundError: There is no such folder, or it was not evaluated.
        ResultsFileError: The results file cannot be read.
        HubError: The Hub cannot be reached, or has no such policy.
    """
    path = Path(policy).expanduser()
    if path.exists():
        return _read(policy, _results_file(path))
    if not HUB_ID.fullmatch(policy):
        raise FileNotFoundError(f"{policy}: no such folder, and not an id on the Hub (org/name)")
    return _read(policy, Path(_download(policy, revision, token)))


def _read(policy: str, file: Path) -> ComparedPolicy:
    return ComparedPolicy(policy, tuple(read_results(file)), tuple(read_diverged(file)))


def find_policies(
    task: Task, *, author: str | None = None, collection: str | None = None, token: str | None = None
) -> PublishedPolicies:
    """Read the results of all policies for a task of an author, or of a collection.

    Args:
        task: The task; an author's repositories are those with a tag of its name.
        author: User or organisation on the Hub.
        collection: Slug of a collection; all models in it are looked at.
        token: Access token of the Hub.

    Raises:
        ValueError: Both or none of author and collection.
        HubError: The Hub cannot be reached, or there is no such author or collection.
    """
    if (author is None) == (collection is None):
        raise ValueError("name either an author or a collection")
    policies, unreadable = [], {}
    for repo_id in sorted(set(_repositories(task, author, collection, token))):
        try:
            policies.append(read_policy_results(repo_id, token=token))
        except (HubError, ValueError, OSError) as error:
            unreadable[repo_id] = str(error)
    return PublishedPolicies(policies, unreadable)


def _repositories(task: Task, author: str | None, collection: str | None, token: str | None) -> Iterable[str]:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        if collection is not None:
            items = api.get_collection(collection).items
            return [item.item_id for item in items if item.item_type == "model"]
        return [model.id for model in api.list_models(author=author, filter=task.name)]
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        where = f"collection {collection}" if collection else f"author {author}"
        raise HubError(f"{where}: cannot be listed: {explain(error)}") from error


def _results_file(path: Path) -> Path:
    if path.is_file():
        return path
    policy = path / POLICY_FOLDER
    places = [path, path / EVALUATION_FOLDER, policy / EVALUATION_FOLDER, policy]
    if path.name == POLICY_FOLDER:  # as in a run's folder
        places += [path.parent / EVALUATION_FOLDER, path.parent]
    for folder in places:
        if (folder / RESULTS).is_file():
            return folder / RESULTS
    raise FileNotFoundError(f"{path}: there is no {RESULTS}; `spi evaluate` writes it")


def _download(repo_id: str, revision: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return HfApi(token=token).hf_hub_download(repo_id, RESULTS, revision=revision)
    except RemoteEntryNotFoundError as error:
        raise HubError(f"{repo_id}: there is no {RESULTS}: it was published without an evaluation") from error
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise HubError(f"{repo_id}: its results cannot be read: {explain(error)}") from error
