"""Small dataset folders, and pushing them to the test's server."""

import re

from data_factory import make_columns
from hub_server import TOKEN

from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.hub.datasets import check_folder, commit_message, find_files, plan_push
from spi_diffusers.hub.upload import upload
from spi_diffusers.hub.upload_plan import UploadOptions

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")


def write(folder, task=BALL, seed=0, **options):
    sizes = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    columns = make_columns(lengths=(30, 20), seed=seed, **sizes)
    data = TransitionDataset.from_columns(columns, task=task, source="made for a test")
    return write_parquet_dataset(data, folder, **options)


def push(hub, folder, repo_id="org/set", *, token=TOKEN, prune=False, check=False, **options):
    files = find_files(folder)
    if check:  # a second of loading
        check_folder(files, progress=False)
    options = UploadOptions(**{"message": commit_message(files), "token": token} | options)
    return upload(plan_push(files, repo_id, options, prune=prune))


def published(hub, repo_id="org/set"):
    return hub.store.get("datasets", repo_id)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_published(hub, folder, repo_id="org/set"):
    """Every file of the folder, the card with the repository's name, and nothing else."""
    there, here = published(hub, repo_id).files, content(folder)
    card = re.sub(r'\("[^"]*/set"', f'("{repo_id}"', here.pop("README.md").decode())  # where it was written
    assert there.pop("README.md").decode() == card
    assert there == here
