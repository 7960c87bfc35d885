"""What a plan would do and what an upload has done, for people."""

from typing import TYPE_CHECKING

from spi_diffusers.hub.upload import UploadPlan, UploadResult

if TYPE_CHECKING:
    from rich.table import Table


def plan_table(plan: UploadPlan) -> "Table":
    """Make a table of the files of a plan: size, and what happens to each.

    Args:
        plan: what is to be done.

    Returns:
        The table; its caption sums up.
    """
    from rich.markup import escape
    from rich.table import Table

    if not plan.exists:
        where = "will be made"
    else:
        where = f"{'private' if plan.private else 'public'}, {plan.branch} at {str(plan.head)[:8]}"
    kind = plan.repo_type
    table = Table(title=f"{plan.repo_id} ({kind}; {where})", caption=_summary(plan))
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("SHA-256")
    table.add_column("")
    for file in plan.files:
        table.add_row(escape(file.path), _size(file.checksums.size), file.checksums.sha256[:16], file.change)
    for path in plan.delete:
        table.add_row(escape(path), "", "", "deleted")
    return table


def result_text(result: UploadResult) -> str:
    """Say what an upload has done.

    Args:
        result: of the upload.

    Returns:
        One line.
    """
    plan = result.plan
    if not result.changed:
        if result.pull_request:
            return f"Nothing to do: an open pull request holds exactly these files: {result.url}"
        return f"Nothing to do: {plan.repo_id} holds exactly these files: {result.url}"
    what = "Opened as a pull request" if result.pull_request else "Published"
    return f"{what}: {_summary(plan)}; verified by checksum: {result.url}"


def _summary(plan: UploadPlan) -> str:
    counts = dict.fromkeys(("new", "changed", "unchanged"), 0)
    for file in plan.files:
        counts[file.change] += 1
    counts["deleted"] = len(plan.delete)
    parts = [f"{count} {change}" for change, count in counts.items() if count]
    size = sum(file.checksums.size for file in plan.files if file.change != "unchanged")
    return f"{', '.join(parts)}; {_size(size)} to send"


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    value = size / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.1f} {unit}"
