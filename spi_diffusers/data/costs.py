"""What several costs have in common: the unit of each, their names, their sum.

Imports no torch.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.documents import parse_json
from spi_diffusers.messages import shown

#: A limit on the cost of an episode: a number, or one for each of several costs.
CostLimit = float | tuple[float, ...]
#: What a cost is called that has no name.
COST = "cost"
#: Of a unit. Beyond, products of float32 numbers give out.
SMALLEST_UNIT, LARGEST_UNIT = 1e-17, 1e17
#: Key of the names in the metadata of a parquet file.
_KEY = b"cost_names"


def as_unit(value: float) -> float:
    """A unit within what a policy's settings may be, as float32 holds it; 1 for 0."""
    # Like the data: so it does not depend on how its statistics were rounded.
    return float(np.float32(min(max(value, SMALLEST_UNIT), LARGEST_UNIT))) if value else 1.0


def cost_unit(mean: float, std: float) -> float:
    """What a costly step typically costs, mean(c^2) / mean(c), from mean and deviation; 1 for no costs."""
    return as_unit((mean**2 + std**2) / mean if mean > 0 else 0.0)


def summed_costs(costs: np.ndarray) -> np.ndarray:
    """Sum of K costs (N, K), each in its own unit, (N,) float32."""
    costs = costs.astype(np.float64)
    units = [cost_unit(*moments) for moments in zip(costs.mean(0), costs.std(0), strict=True)]
    return (costs / np.array(units)).sum(1).astype(np.float32)


def check_cost_names(names: Sequence[str], count: int, source: str) -> tuple[str, ...]:
    """Names of K costs; DatasetError: not as many, or two are the same."""
    if len(names) != count or len(set(names)) < count or not all(names):
        raise DatasetError(f"{source}: {count} costs need as many different names, got {shown(list(names))}")
    return tuple(names)


def names_to_metadata(names: Sequence[str]) -> dict[bytes, bytes]:
    """What `names_from_metadata` reads again; nothing for one cost."""
    return {_KEY: json.dumps(list(names)).encode()} if len(names) > 1 else {}


def names_from_metadata(metadata: Mapping[bytes, bytes] | None, source: str) -> tuple[str, ...] | None:
    """The names in a parquet file's metadata, if they are there; DatasetError for ones that are damaged."""
    text = (metadata or {}).get(_KEY)
    if text is None:
        return None
    try:
        names = parse_json(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{source}: its cost_names are damaged: {shown(text)}")
    return tuple(names)
