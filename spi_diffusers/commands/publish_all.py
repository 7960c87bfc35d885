"""`spi publish --all`: publish every trained policy under a folder, and a collection of them."""

import argparse
import sys
from typing import TYPE_CHECKING

from spi_diffusers.commands.output import hide_hub_bars, print_tables
from spi_diffusers.files import OUTPUTS_FOLDER, local_path

if TYPE_CHECKING:
    from rich.table import Table

    from spi_diffusers.hub.hub_collection import CollectionPlan, Item
    from spi_diffusers.hub.publish_all import FoundPolicies, Outcome, TrainedPolicy
    from spi_diffusers.hub.upload_plan import UploadOptions

DEFAULT_COLLECTION = "Safe policies by SPI"
#: Options that only go with --all, and those that do not go with it.
_ONLY_WITH_ALL = ("seed", "exclude", "collection", "no_collection", "dataset")
_NOT_WITH_ALL = ("space", "evaluation", "output", "create_pr")
#: Those of a single policy's repository.
_NOT_WITH_SPACE = ("evaluation", "output")


def add_arguments(parser: "argparse._ArgumentGroup") -> None:
    """Add the options that only go with `--all`."""
    parser.add_argument("--seed", type=int, help="publish weights of this training seed only")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="folders in FOLDER to leave out, such as demo or 'old/*'; may be given several times",
    )
    parser.add_argument(
        "--collection",
        default=DEFAULT_COLLECTION,
        metavar="TITLE",
        help=f"collection that is made or completed, by its title or slug (default: {DEFAULT_COLLECTION})",
    )
    parser.add_argument("--no-collection", action="store_true", help="leave collections alone")
    parser.add_argument(
        "--dataset", metavar="ORG/NAME", help="dataset on the Hub that goes into the collection too"
    )


def upload_options(args: argparse.Namespace) -> "UploadOptions":
    """How to publish, from the options of the command line."""
    from spi_diffusers.hub.upload_plan import UploadOptions

    return UploadOptions(
        branch=args.revision,
        tag=args.tag,
        message=args.message,
        private=args.private,
        create_pr=args.create_pr,
        token=args.token,
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuse options of `--all` where it is not given, others where it is, and some with `--space`, with a
    ValueError.
    """
    why = "does not go with --all" if args.all else "goes only with --all"
    for name in _NOT_WITH_ALL if args.all else _ONLY_WITH_ALL:
        if getattr(args, name) != args.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} {why}")
    for name in _NOT_WITH_SPACE if args.space is not None else ():
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --space")


def run(args: argparse.Namespace) -> int:
    """Publish all policies and fill the collection; exit code 1 if anything failed."""
    if args.no_collection and (args.dataset or args.collection != DEFAULT_COLLECTION):
        raise ValueError("--no-collection leaves nothing for --collection and --dataset to do")
    folder, organization = (
        (OUTPUTS_FOLDER, args.folder) if args.repo_id is None else (args.folder, args.repo_id)
    )
    if organization is None:
        raise ValueError("the following arguments are required: ORG (spi publish --help explains)")
    if "/" in organization:
        raise ValueError(
            f"--all takes the name of a user or organization, got {organization!r}: "
            "spi publish --all [FOLDER] ORG; the names of the repositories follow from the tasks"
        )
    if args.repo_id is None and local_path(organization).is_dir():  # the organization was forgotten
        raise ValueError(f"{organization!r} is a folder here: spi publish --all {organization} ORG")
    if args.quiet:
        hide_hub_bars()

    from spi_diffusers.hub.hub_collection import check_dataset, plan_collection
    from spi_diffusers.hub.publish_all import choose, find_trained_policies, publish_policies

    found = find_trained_policies(folder, args.exclude)
    chosen = choose(found.policies, args.seed)
    _print_left_out(found, chosen)
    collection = None
    if not args.no_collection:
        collection = plan_collection(args.collection, organization, private=args.private, token=args.token)
        if args.dataset is not None:
            check_dataset(args.dataset, token=args.token)
    published = publish_policies(
        chosen,
        found.policies,
        organization,
        upload_options(args),
        license=args.license,
        dry_run=args.dry_run,
    )
    outcomes: list[Outcome] = []
    for number, outcome in enumerate(published, 1):
        outcomes.append(outcome)
        print(f"{number}/{len(chosen)} {outcome.repo_id}: {outcome.state}", flush=True)
    print_tables(_table(outcomes), width=160)
    failures = [f"{outcome.repo_id}: {outcome.text}" for outcome in outcomes if outcome.state == "failed"]
    failures += list(found.unnamed.values())
    if collection is not None:
        items: list[Item] = [("model", outcome.repo_id) for outcome in outcomes if outcome.state != "failed"]
        items += [("dataset", args.dataset)] if args.dataset is not None else []
        failures += _fill(collection, items, outcomes, args)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if args.dry_run:
        print("Dry run: nothing was changed on the Hub.")
    elif failures:
        print(f"{len(failures)} failed; the same command completes what is missing.", file=sys.stderr)
    return 1 if failures else 0


def _print_left_out(found: "FoundPolicies", chosen: "tuple[TrainedPolicy, ...]") -> None:
    for folder in found.unfinished:
        print(f"left out: {folder}: its training has not ended, there is no policy yet", file=sys.stderr)
    for policy in found.policies:
        if policy not in chosen:
            print(f"left out: {policy.folder}: weights of training seed {policy.train_seed}", file=sys.stderr)


def _fill(
    plan: "CollectionPlan", items: "list[Item]", outcomes: "list[Outcome]", args: argparse.Namespace
) -> list[str]:
    """Fill the collection, or say what would be done; returns what failed."""
    from spi_diffusers.hub.client import HubError
    from spi_diffusers.hub.hub_collection import fill_collection

    missing = ", ".join(item_id for _, item_id in plan.missing(items))
    if args.dry_run:
        where = f"{plan.slug} exists" if plan.slug else f"{plan.title!r} will be made"
        print(f"Collection: {where}; to put in: {missing or 'nothing'}")
        return []
    if not items:
        return []  # everything failed; an empty collection helps nobody
    try:
        result = fill_collection(plan, items, token=args.token)
    except HubError as error:
        return [str(error)]
    what = "made, with" if result.made else "put in:" if missing else "holds all of it already"
    print(f"Collection: {what}{' ' + missing if missing else ''}: {result.url}")
    task = next((outcome.policy.task for outcome in outcomes if outcome.state != "failed"), None)
    if task is not None:
        print(f"Next: spi leaderboard {task} --collection {result.slug}")
    return []


def _table(outcomes: "list[Outcome]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in ("repository", "training seed", "results", "", "what"):
        table.add_column(name, overflow="fold", justify="right" if name == "results" else "left")
    for outcome in outcomes:
        results = str(outcome.entries) if outcome.entries or outcome.state == "failed" else "not evaluated"
        cells = (
            outcome.repo_id,
            f"{outcome.policy.train_seed} ({outcome.policy.folder})",
            "" if outcome.state == "failed" else results,
            outcome.state,
            "" if outcome.state == "failed" else outcome.text,
        )
        table.add_row(*map(escape, cells))
    return table
