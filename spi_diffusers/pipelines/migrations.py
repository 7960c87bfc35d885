"""Policy folders of older format versions, brought up to date one version at a time as they are read.

When a setting of `model_index.json` is renamed or changes its meaning, raise `FORMAT_VERSION` in
`spi_policy.py` and add the step from the version before to `MIGRATIONS`. Files on disk are never changed;
a policy that is saved again is saved in the newest version.
"""

from collections.abc import Callable
from typing import Any

#: What turns the content of `model_index.json` of a version into that of the next one; there is one yet.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrate(index: dict[str, Any]) -> dict[str, Any]:
    """The content of a `model_index.json` in the newest format version.

    Args:
        index: Of any version that this package or an older one has written; a newer one is left as it is,
            for `SPIPolicyPipeline.check_format_version` to refuse.

    Returns:
        A new dictionary.
    """
    migrated = dict(index)
    version = migrated.get("format_version", 1)
    while isinstance(version, int) and version in MIGRATIONS:
        version += 1
        migrated = MIGRATIONS[version - 1](migrated) | {"format_version": version}
    return migrated
