"""The page as a Space on the Hub: the app, this package, and the policies that it shows.

The package goes along as it is here, so the page there is the one that was tried here, published or not.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from packaging.requirements import Requirement

import spi_diffusers
from spi_diffusers.data.simulators import SIMULATORS
from spi_diffusers.data.tasks import get_task
from spi_diffusers.files import CARD_FILE, REPLAY_FILE
from spi_diffusers.hub.policy_files import (
    DEFAULT_LICENSE,
    EVAL_RESULTS_FOLDER,
    PLOTS_FOLDER,
    PolicyFiles,
    read_policy_files,
)
from spi_diffusers.hub.publish import assemble, check_acts
from spi_diffusers.hub.upload_plan import UploadOptions, UploadPlan, plan_upload
from spi_diffusers.pipelines.loading import resolve_policy
from spi_diffusers.spaces.episode import policies_on_show

POLICIES_FOLDER, PACKAGE_FOLDER = "policies", "spi_diffusers"
#: The newest Python for which all simulators have wheels; what markers are judged by.
_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
_APP = f"""from spi_diffusers.spaces.page import serve

serve(["{POLICIES_FOLDER}"])
"""
#: What of the package is needed there: not the data in it, nor what Python compiles.
_CODE = (".py", ".json", ".yaml", ".md")


def plan_space(
    policy: str | Path, repo_id: str, options: UploadOptions, *, license: str | None = None
) -> UploadPlan:
    """Compare the page and its policies with a Space on the Hub, as `plan_upload`; each policy acts once.

    Args:
        policy: Folder of a policy, of its run or of several, or an id on the Hub.
        repo_id: The Space, `org/name`.
        options: How to publish.
        license: Of the Space; by default that of the policies.

    Raises:
        FileNotFoundError: There is no such policy.
        ValueError: A policy cannot be published or act.
        HubError: The Hub cannot be reached, or refuses.
    """
    menu = policies_on_show([policy])
    policies = {title: read_policy_files(resolve_policy(place)) for title, place in menu.items()}
    for files in policies.values():
        check_acts(files)
    content = space_files(policies, repo_id, license or DEFAULT_LICENSE)
    return plan_upload(repo_id, content, options, repo_type="space", stale=_is_ours)


def space_files(
    policies: Mapping[str, PolicyFiles], repo_id: str, license: str = DEFAULT_LICENSE
) -> dict[str, Path | bytes]:
    """Everything in the Space by its path there, for policies by their names in the page's menu."""
    content: dict[str, Path | bytes] = {"app.py": _APP.encode()}
    for number, files in enumerate(policies.values()):
        folder = f"{POLICIES_FOLDER}/{number}-{get_task(files.task).short_name if files.task else 'own-data'}"
        for path, data in assemble(files, repo_id).items():
            if path.split("/")[0] not in (CARD_FILE, REPLAY_FILE, PLOTS_FOLDER, EVAL_RESULTS_FOLDER):
                content[f"{folder}/{path}"] = data
    package = Path(spi_diffusers.__file__).parent
    for file in sorted(package.rglob("*")):
        if file.suffix in _CODE and "embedded" not in file.parts:
            content[f"{PACKAGE_FOLDER}/{file.relative_to(package).as_posix()}"] = file
    tasks = [get_task(files.task) for files in policies.values() if files.task]
    extras = {SIMULATORS[task.simulator].extra for task in tasks}
    content["requirements.txt"] = "".join(f"{line}\n" for line in _requirements(extras)).encode()
    content[CARD_FILE] = _card(list(policies), repo_id, license).encode()
    return content


def _requirements(extras: Iterable[str | None]) -> list[str]:
    """What pip installs there: this package's own requirements. Gradio comes with the Space."""
    wanted = {"", "video", *(extra for extra in extras if extra)}
    lines = set()
    for text in importlib.metadata.requires("spi-diffusers") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**_PYTHON, "extra": extra}) for extra in wanted):
            requirement.marker = None
            lines.add(str(requirement))
    return sorted(lines)


def _card(names: list[str], repo_id: str, license: str) -> str:
    from jinja2 import Environment, StrictUndefined

    try:
        gradio = importlib.metadata.version("gradio")  # the one that the page was tried with
    except importlib.metadata.PackageNotFoundError:
        gradio = None
    template = resources.files("spi_diffusers.spaces").joinpath("card.md").read_text(encoding="utf-8")
    environment = Environment(keep_trailing_newline=True, autoescape=False, undefined=StrictUndefined)
    return environment.from_string(template).render(
        title=repo_id.rpartition("/")[2],
        names=names,
        repo_id=repo_id,
        license=license,
        gradio_version=gradio,
        version=spi_diffusers.__version__,
    )


def _is_ours(path: str) -> bool:
    return path.split("/")[0] in (POLICIES_FOLDER, PACKAGE_FOLDER)
