"""Publish a policy to the Hub: checked first, then one verified commit, then the tag."""

import hashlib
import logging
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.network import fetch_snapshot
from spi_diffusers.evaluation.results import results_text
from spi_diffusers.files import (
    ASSESSMENT_FILE,
    CARD_FILE,
    CERTIFICATE_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    REPLAY_FILE,
    RESULTS_FILE,
    WEIGHTS_FILE,
    check_new_folder,
    folder_aside,
    read_json,
    sha256_of,
    to_json,
)
from spi_diffusers.hub.card import eval_results_yaml, policy_card
from spi_diffusers.hub.client import explained
from spi_diffusers.hub.policy_files import (
    EVAL_RESULTS_FOLDER,
    PLOTS_FOLDER,
    PolicyFiles,
    is_ours,
    read_policy_files,
)
from spi_diffusers.hub.upload import UploadResult, upload
from spi_diffusers.hub.upload_plan import UploadOptions, UploadPlan, plan_upload

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

logger = logging.getLogger(__name__)


def assemble(files: PolicyFiles, repo_id: str) -> dict[str, Path | bytes]:
    """Everything that is published, by its path in the repository: local files, or bytes made here.

    `repo_id` is for the card's commands.
    """
    from spi_diffusers.pipelines.saving import sealed, with_code

    index, code = with_code(files.index)
    content: dict[str, Path | bytes] = {**code}
    for name, (library, _) in files.components.items():
        if library == "diffusers":
            content[f"{name}/scheduler_config.json"] = _config(files.folder / name / "scheduler_config.json")
            continue
        content[f"{name}/config.json"] = _config(files.folder / name / "config.json")
        content[f"{name}/{WEIGHTS_FILE}"] = files.folder / name / WEIGHTS_FILE
    for name, values in ((INFO_FILE, files.train_info), (CONFIG_FILE, files.train_config)):
        if values:
            content[name] = to_json(values)
    sums = {path: _sha256(data) for path, data in sorted(content.items())}
    content[INDEX_FILE] = sealed(index, sums)  # of the policy; its results and card may change without it
    if files.entries:
        content[RESULTS_FILE] = results_text(files.entries, diverged=files.diverged).encode()
        content |= {f"{PLOTS_FOLDER}/{name}": path for name, path in files.plots.items()}
        if files.replay is not None:
            content[REPLAY_FILE] = files.replay
    if files.assessment is not None:
        content[ASSESSMENT_FILE] = files.assessment.to_json()
    if files.certificate is not None:
        content[CERTIFICATE_FILE] = files.certificate.to_json()
    yaml = eval_results_yaml(files)
    if yaml is not None:
        content[f"{EVAL_RESULTS_FOLDER}/{files.task}.yaml"] = yaml
    content[CARD_FILE] = policy_card(files, repo_id).encode("utf-8")
    return content


def check_acts(files: PolicyFiles) -> None:
    """Load the policy and draw an action, so that nothing is published that cannot act; ValueError if it
    cannot.
    """
    import torch

    from spi_diffusers.pipelines.loading import load_pipeline

    pipeline: Any = load_pipeline(files.folder)
    observation = torch.zeros(pipeline.noise_model.config.observation_dim)
    generator = torch.Generator().manual_seed(0)
    pipeline(observation, cost_budget=10.0, steps_left=100, generator=generator)


def plan_publish(files: PolicyFiles, repo_id: str, options: UploadOptions) -> UploadPlan:
    """Compare a policy with a repository on the Hub, as `plan_upload`. Files that publishing does not make
    (LICENSE, .gitattributes) stay.
    """
    components = tuple(files.components)
    content = assemble(files, repo_id)
    return plan_upload(repo_id, content, options, stale=lambda path: is_ours(path, components))


def publish_pipeline(
    pipeline: "SPIPolicyPipeline", repo_id: str, options: UploadOptions, *, license: str | None = None
) -> UploadResult:
    """Publish a policy from memory; errors as in `upload`, and ValueError if it cannot act.

    Its training record, and the evaluation in the folder that it was loaded from, go with it if weights and
    settings are still those that were trained; else its card says that there are none.
    """
    with tempfile.TemporaryDirectory(prefix="spi-publish-") as temporary:
        folder = Path(temporary) / "pipeline"
        pipeline.save_pretrained(folder)
        origin = Path(str(pipeline.name_or_path or ""))
        files = read_policy_files(folder)
        if pipeline.is_as_trained and (origin / INDEX_FILE).is_file():
            _complete_snapshot(origin, options.token)
            try:
                files = read_policy_files(origin)
            except (ValueError, OSError) as error:
                logger.warning("%s: published without its training record and evaluation: %s", origin, error)
                files = replace(files, train_info={}, train_config={})
        files = replace(files, license=license or files.license)
        check_acts(files)
        return upload(plan_publish(files, repo_id, options))


def copy_folder(files: PolicyFiles, repo_id: str, folder: Path, *, replace: bool = False) -> Path:
    """Write what would be published to a local folder, complete or not at all; FileExistsError if it is not
    empty and not to be replaced.
    """
    if not replace:
        check_new_folder(folder)
    try:
        with folder_aside(folder, replace=replace) as aside:
            for path, data in assemble(files, repo_id).items():
                target = aside / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    except OSError as error:
        raise OSError(error.errno, f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder


def _config(path: Path) -> Path | bytes:
    """A config without the folder of this machine that diffusers notes in what is saved after loading."""
    config = read_json(path)
    return (
        to_json({k: v for k, v in config.items() if k != "_name_or_path"})
        if "_name_or_path" in config
        else path
    )


def _sha256(data: Path | bytes) -> str:
    return sha256_of(data) if isinstance(data, Path) else hashlib.sha256(data).hexdigest()


def _complete_snapshot(origin: Path, token: str | bool | None) -> None:
    """A policy from the Hub came without plots and video: fetch those of the same commit beside it."""
    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$", origin.as_posix())
    if found is None or not (origin / RESULTS_FILE).exists():
        return
    repo_id = f"{found[1]}/{found[2]}"
    with explained(
        f"{repo_id}: the plots and video of this policy cannot be fetched", ". Nothing was published"
    ):
        fetch_snapshot(
            repo_id,
            revision=found[3],
            allow_patterns=[f"{PLOTS_FOLDER}/*.png", REPLAY_FILE],
            cache_dir=origin.parents[2],
            token=token,
        )
