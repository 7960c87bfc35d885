"""`spi publish`: publish a policy, or all of them, to the Hub."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from spi_diffusers.commands import publish_all
from spi_diffusers.commands.output import hide_hub_bars, print_tables
from spi_diffusers.files import local_path

if TYPE_CHECKING:
    from spi_diffusers.hub.policy_files import PolicyFiles

EXAMPLES = """\
examples:
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --dry-run      what would be published, and card
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --private --tag v1
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --create-pr    as a pull request
  spi publish outputs/ballcircle-seed0 org/x --dry-run --output copy     the same files in a local folder
  spi publish --all org --dry-run                        every policy under outputs/ as org/spi-<task>
  spi publish --all runs org --seed 0 --dataset org/data     and a collection of them and of their data
  spi publish outputs/ballcircle-seed0 --space org/try-ballcircle        the page of spi space, for everybody
  spi evaluate org/spi-ballcircle                                        plays what was published

The repository holds weights (safetensors only), configs, the code that diffusers needs to load them without
this package, the card, results, plots and video. First the policy is loaded and acts once. Then everything
becomes visible at once, by one commit, whose content is verified by checksum. If anything fails, the
repository is as it was, and the same command goes on. Where nothing has changed, no commit is made. Log in
with `hf auth login`, or set HF_TOKEN.

--all takes every trained policy under a folder and names it after algorithm and task: ORG/spi-carcircle,
ORG/spi-paper-carcircle. Several training seeds of a kind need --seed, which chooses the weights; results of
the others go on the same card, if they were trained alike. One that fails does not stop the others: failures
are listed at the end (exit code 1), and the same command completes what is missing. Last, a collection of all
of them is made or completed.

--space makes a Space in place of a model repository: the page of `spi space` with the policies under FOLDER.
It holds the policies and this package's own code, so it needs no other repository.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi publish`."""
    folder = parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="folder of a policy, or of its run; with --all, of runs (may be left out: outputs)",
    )
    repository = parser.add_argument(
        "repo_id",
        metavar="ORG/NAME",
        help="model repository; made if it does not exist; with --all, only ORG",
    )
    # `--all ORG` is enough, so `run` sees to it that nothing is missing. Not nargs="?": then all positional
    # arguments would have to stand together.
    folder.required = repository.required = False
    parser.add_argument("--all", action="store_true", help="publish every trained policy under FOLDER")
    every = parser.add_argument_group("with --all")
    publish_all.add_arguments(every)
    parser.add_argument(
        "--space",
        metavar="ORG/NAME",
        help="publish the page of spi space with FOLDER's policies there, in place of ORG/NAME",
    )
    parser.add_argument(
        "--evaluation", metavar="DIR", help="folder with results.json (default: where spi evaluate writes it)"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    parser.add_argument(
        "--create-pr", action="store_true", help="open a pull request, leave the branch alone"
    )
    parser.add_argument(
        "--revision", default="main", metavar="BRANCH", help="branch (default: main); may be new"
    )
    parser.add_argument(
        "--tag", help="name for what is published, such as v1; an existing one is never moved"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, as the Hub names licenses, such as cc-by-nc-4.0 (default: apache-2.0)",
    )
    parser.add_argument("--message", default="Publish policy", help="what the commit is called")
    parser.add_argument("--token", help="access token (default: HF_TOKEN, or that of `hf auth login`)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check and show everything, but change nothing on the Hub"
    )
    parser.add_argument("--output", metavar="DIR", help="also write what is published to a new local folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Check a policy, compare it with the Hub, and publish it; or all of them."""
    publish_all.check_options(args)
    if args.all:
        return publish_all.run(args)
    if args.space is not None and args.repo_id is not None:
        raise ValueError(f"--space names the repository, so {args.repo_id!r} is one too many")
    repo_id = args.space if args.repo_id is None else args.repo_id
    missing = [name for name, value in (("FOLDER", args.folder), ("ORG/NAME", repo_id)) if value is None]
    if missing:
        raise ValueError(
            f"the following arguments are required: {', '.join(missing)} (spi publish --help explains)"
        )
    if args.create_pr and (args.tag is not None or args.revision != "main"):
        raise ValueError("--create-pr opens a pull request on main; it goes without --tag and --revision")
    if args.quiet:
        hide_hub_bars()
    if args.space is not None:
        return _publish_space(args)
    if args.output is None:
        return _publish(args)

    from spi_diffusers.files import check_new_folder
    from spi_diffusers.locks import held

    with held(args.output, "publication", beside=True):
        check_new_folder(local_path(args.output))
        return _publish(args)


def _publish(args: argparse.Namespace) -> int:
    from spi_diffusers.hub.card import policy_card
    from spi_diffusers.hub.policy_files import read_policy_files
    from spi_diffusers.hub.publish import check_acts, plan_publish
    from spi_diffusers.hub.upload import upload

    files = read_policy_files(args.folder, args.evaluation)
    files = replace(files, license=args.license or files.license)
    check_acts(files)
    if not files.entries:
        print(
            f"{files.folder}: has not been evaluated, and its card will say so; `spi evaluate {args.folder}` "
            "writes the results",
            file=sys.stderr,
        )
    plan = plan_publish(files, args.repo_id, publish_all.upload_options(args))
    print_tables(plan.table())
    if args.dry_run:
        _write_copy(files, args)
        print(f"\n{policy_card(files, args.repo_id)}\nDry run: nothing was changed on the Hub.")
        return 0
    result = upload(plan)
    print(result)
    _write_copy(files, args)
    if args.tag is not None:
        print(f"Tagged: {args.tag}")
    if files.train_info:  # without it, nobody could say whose results they are
        revision = result.pull_request or (None if args.revision == "main" else args.revision)
        at = f" --revision {revision}" if revision else ""
        print(f"Next: spi evaluate {args.repo_id}{at}")
    return 0


def _publish_space(args: argparse.Namespace) -> int:
    from spi_diffusers.hub.upload import upload
    from spi_diffusers.spaces.publish import plan_space

    plan = plan_space(args.folder, args.space, publish_all.upload_options(args), license=args.license)
    if args.dry_run:
        print(f"{plan.repo_id} (space): {plan.summary()}")
        print("Dry run: nothing was changed on the Hub.")
        return 0
    print(upload(plan))
    return 0


def _write_copy(files: "PolicyFiles", args: argparse.Namespace) -> None:
    """Last, as the folder must be new: a failed upload is tried again by the same command."""
    from spi_diffusers.hub.publish import copy_folder

    if args.output is not None:
        print(f"Written: {copy_folder(files, args.repo_id, local_path(args.output))}")
