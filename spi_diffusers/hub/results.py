"""Results of policies, from folders and from the Hub, without loading the policies."""

from collections.abc import Iterable
from pathlib import Path

from spi_diffusers.data.network import fetch_snapshot
from spi_diffusers.data.tasks import Task
from spi_diffusers.evaluation.certificate import own_certificate
from spi_diffusers.evaluation.results import Results, read_results
from spi_diffusers.files import (
    CARD_FILE,
    CERTIFICATE_FILE,
    EVALUATION_FOLDER,
    INDEX_FILE,
    POLICY_FOLDER,
    RESULTS_FILE,
    check_hub_id,
    local_path,
)
from spi_diffusers.hub.client import HubError, explained, hub_api

#: What of a repository says how good its policy is.
_SMALL_FILES = [CARD_FILE, RESULTS_FILE, CERTIFICATE_FILE, INDEX_FILE]


def results_folders(path: Path) -> list[Path]:
    """Folders that hold a policy's `results.json`, the most likely one first: where `spi evaluate`, the demo
    and publishing write it, in the folder of a policy, a run or an evaluation.
    """
    places = [path / EVALUATION_FOLDER, path, path / POLICY_FOLDER / EVALUATION_FOLDER, path / POLICY_FOLDER]
    if path.name == POLICY_FOLDER:  # as in a run's folder
        places = [path.parent / EVALUATION_FOLDER, path.parent, *places]
    return [place for place in places if (place / RESULTS_FILE).is_file()]


def read_policy_results(policy: str, *, token: str | None = None) -> Results:
    """Read results: from a results file, the folder of a policy, run or evaluation, or an id on the Hub; of a
    policy, a run and an id with the certificate.

    What exists on disk is never looked up on the Hub. FileNotFoundError: no such folder, or not evaluated;
    ResultsFileError: it cannot be read; HubError: the Hub cannot be reached or has no such policy.
    """
    file = local_path(policy)
    if file.is_dir():
        folders = results_folders(file)
        if not folders:
            raise FileNotFoundError(f"{file}: there is no {RESULTS_FILE}; `spi evaluate` writes it")
        return _with_certificate(read_results(folders[0] / RESULTS_FILE), file)
    if not file.exists():
        check_hub_id(policy)
        return _download(policy, token, "no such folder, and its results cannot be read from the Hub")
    return read_results(file)


def _with_certificate(results: Results, folder: Path) -> Results:
    results.certificate = own_certificate(folder)
    return results


def find_policies(
    task: Task, *, author: str | None = None, collection: str | None = None, token: str | None = None
) -> tuple[dict[str, Results], dict[str, str]]:
    """Read the results of all policies for a task: an author's with its tag, or all of a collection (slug).

    Returns the results, and why others could not be read, both by repository.

    ValueError: both or none of author and collection; HubError: the Hub cannot be reached, or has no such
    thing.
    """
    if (author is None) == (collection is None):
        raise ValueError("name either an author or a collection")
    policies, unreadable = {}, {}
    for repo_id in sorted(set(_repositories(task, author, collection, token))):
        try:
            policies[repo_id] = _download(repo_id, token)
        except (HubError, ValueError, OSError) as error:
            unreadable[repo_id] = str(error)
    return policies, unreadable


def _repositories(task: Task, author: str | None, collection: str | None, token: str | None) -> Iterable[str]:
    where = f"collection {collection}" if collection else f"author {author}"
    with explained(f"{where}: cannot be listed"):
        if collection is not None:
            items = hub_api(token).get_collection(collection).items
            return [item.item_id for item in items if item.item_type == "model"]
        return [model.id for model in hub_api(token).list_models(author=author, filter=task.name)]


def _download(repo_id: str, token: str | None, failed: str = "its results cannot be read") -> Results:
    with explained(f"{repo_id}: {failed}"):
        folder = fetch_snapshot(repo_id, allow_patterns=_SMALL_FILES, token=token)
    if not (folder / RESULTS_FILE).is_file():
        raise HubError(f"{repo_id}: there is no {RESULTS_FILE}: it was published without an evaluation")
    return _with_certificate(read_results(folder / RESULTS_FILE), folder)
