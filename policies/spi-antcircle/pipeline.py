"""The SPI policy as a diffusers pipeline: make candidate actions, value them, extract one.

This file is shipped in a policy's folder and Hub repository as `pipeline.py`, with the modules beside it that
it needs in place of their imports; all of them need only torch, numpy and diffusers. It is one file there
because diffusers puts the shipped code of all local policies into one flat package and reloads only the
pipeline's own file: a second policy would act with the first one's modules. What the installed package adds,
checked loading, saving and publishing, is in `hub_policy.py`.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

"""What the rest of an episode may cost, from what a caller says of it.

Shipped as a part of `pipeline.py`, and used where there is no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

"""Numbers that callers pass: read, checked, and shown in messages.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Of any setting or argument: beyond it, whole numbers and float32 give out.
LARGEST = 1e18


def shown(value: Any) -> str:
    """How messages show a value: on one line, at most 200 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def as_plain(value: Any) -> Any:
    """A number of NumPy or torch as one of Python, also in a list; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        plain = type(value)(as_plain(item) for item in value)
        return value if all(new is old for new, old in zip(plain, value, strict=True)) else plain
    return value


def as_number(
    name: str, value: Any, low: float, high: float = LARGEST, *, whole: bool = False, below: bool = False
) -> Any:
    """A setting or an argument as a plain number.

    Args:
        name: What messages call it.
        value: A number of Python, NumPy or torch, but no bool.
        low: Smallest value.
        high: Largest value.
        whole: Whether it must be an int.
        below: Whether `high` itself is too large.

    Returns:
        An int or a float.

    Raises:
        ValueError: It is no number, or out of range.
    """
    number = as_plain(value)
    is_number = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
    if not is_number or not low <= number <= high or (below and number == high):  # NaN is refused, too
        limits = f"in [{low:g}, {high:g}{')' if below else ']'}" if high < LARGEST else f"of at least {low:g}"
        kind = "whole" if whole else "finite"
        raise ValueError(f"{name} must be a {kind} number {limits}, got {shown(value)}.")
    return number


def to_numpy(value: Any) -> np.ndarray:
    """An array from a tensor, wherever it is, or from what NumPy makes one of; not checked."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def without_one(costs: Any) -> Any:
    """Costs (..., K), torch or NumPy, as users see them: of one cost (...)."""
    return costs[..., 0] if costs.shape[-1] == 1 else costs


def as_floats(name: str, value: Any, kinds: str = "iuf") -> np.ndarray:
    """Numbers as float32, in an array of its own.

    Args:
        name: What messages call them.
        value: A number, or what NumPy makes an array of.
        kinds: NumPy's letters of the data types that are taken; "b" for true and false.

    Returns:
        An array of the same shape.

    Raises:
        ValueError: It holds something else than numbers: text, complex numbers, masked ones, lists of
            several lengths, a dict.
    """
    if type(value) in (float, int) and abs(value) <= LARGEST:  # at every step of a loop
        return np.array(value, dtype=np.float32)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        raise ValueError(f"{name} is a pair of an observation and its info: pass the observation alone.")
    if isinstance(value, Mapping):
        raise ValueError(f"{name} is a dict: put its numbers into one array, in the order of the training.")
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(f"{name} has masked numbers: fill them first, got {shown(value)}.")
    try:
        array = np.asarray(value)
        if array.dtype == object and all(isinstance(item, numbers.Real) for item in array.flat):
            array = array.astype(np.float64)
        if array.dtype.kind not in kinds:
            raise ValueError(f"data type {array.dtype}")
        with np.errstate(all="ignore"):  # what is too large is infinite then, and named by its index
            return array.astype(np.float32, order="C")
    except Exception as error:  # whatever NumPy and other libraries raise about their types
        raise ValueError(
            f"{name} must be a number or an array of numbers, in rows of one length, got {shown(value)}."
        ) from error


def check_batch(observations: Any, size: int) -> None:
    """Raise ValueError unless an array or tensor is (size,) or (B, size), of finite numbers."""
    shape = tuple(observations.shape)
    if len(shape) not in (1, 2) or shape[-1] != size or 0 in shape:
        raise ValueError(f"observation has shape {shape}; this policy takes ({size},) or (batch, {size}).")
    finite = abs(observations) < math.inf  # not NaN either
    if not bool(finite.all()):
        position = np.argwhere(~to_numpy(finite))[0].tolist()
        raise ValueError(f"observation is NaN or infinite at index {position}.")


def check_per_observation(name: str, numbers: Any, batch: int) -> None:
    """Raise ValueError unless an array or tensor is one finite number, or one for each observation."""
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) not in (1, batch)):
        raise ValueError(
            f"{name} has shape {tuple(numbers.shape)}; pass one number or one per observation ({batch},)."
        )
    if not bool((abs(numbers) < math.inf).all()):
        raise ValueError(f"{name} is NaN or infinite: {shown(to_numpy(numbers).tolist())}.")


def check_text(name: str, value: Any) -> None:
    """Raise ValueError if a setting is neither text nor None."""
    if not (value is None or isinstance(value, str)):
        raise ValueError(f"{name} must be text or None, got {shown(value)}.")

EXTRACTIONS = ("reward", "safe")
#: Share of episodes that may exceed the limit, where the caller names none.
DEFAULT_RISK = 0.05


@dataclass(frozen=True)
class CostAllowance:
    """What the rest of an episode may cost, in arrays or tensors.

    Attributes:
        budget: Costs that may still be caused, (B, K); from a caller with one cost alone (B,).
        steps: Steps over which they may be, shape (B,).
        risk: Probability with which any of them may be exceeded.
    """

    budget: Any
    steps: Any
    risk: float


def check_risk(risk: Any) -> float:
    """A share of the episodes in (0, 1); ValueError: it is none."""
    number = float(as_number("risk", risk, 0, 1, below=True))
    if number == 0:
        raise ValueError("risk must lie above 0: no estimate from data excludes that a limit is exceeded.")
    return number


def cost_allowance(
    max_episode_steps: int | None,
    extraction: str | None,
    cost_limit: Any,
    cost_budget: Any,
    steps_left: Any,
    risk: Any,
    per_observation: Callable[[str, Any], Any],
    per_cost: Callable[[str, Any], Any] | None = None,
) -> tuple[str, CostAllowance | None]:
    """Which extraction applies, and for the safe one what the rest of the episode may cost.

    A limit alone is taken for the budget of a whole episode that starts at every step anew: the cost so far
    is not known.

    Args:
        max_episode_steps: Of the policy.
        extraction: As in `SPIPolicyPipeline.__call__`, like the four after it.
        cost_limit: As `per_cost` takes it, or None.
        cost_budget: The same.
        steps_left: A number, one per observation, or None.
        risk: A number.
        per_observation: Makes of a name and a number, or one per observation, float32: (), (1,) or (B,).
        per_cost: Makes of a name and what it is for each of K costs float32, (K,) to (B, K); by default, for
            one cost, as `per_observation`.

    Raises:
        ValueError: The arguments do not go together, or one is out of range.
    """
    if extraction is None:
        extraction = "reward" if cost_limit is None and cost_budget is None else "safe"
    if extraction not in EXTRACTIONS:
        raise ValueError(f"extraction must be one of {EXTRACTIONS}, got {shown(extraction)}.")
    if (cost_budget is None) != (steps_left is None):
        raise ValueError("cost_budget and steps_left (in the episode) must be given together.")
    if cost_budget is not None and cost_limit is not None:
        raise ValueError(
            "Pass cost_budget (what is left of the limit) with steps_left, or cost_limit alone where the "
            "cost so far is not known; not both."
        )
    risk, per_cost = check_risk(risk), per_cost or per_observation
    if cost_limit is not None:
        budget = per_cost("cost_limit", cost_limit)
        if bool((budget < 0).any()):
            raise ValueError(f"cost_limit must not be negative, got {shown(cost_limit)}.")
        if max_episode_steps is None:
            raise ValueError(
                "This policy does not know its task's episode length: pass cost_budget and steps_left "
                "instead of cost_limit."
            )
        steps = per_observation("max_episode_steps", max_episode_steps)
    elif cost_budget is not None:
        budget = per_cost("cost_budget", cost_budget)
        steps = per_observation("steps_left", steps_left)
        if bool((steps < 1).any()):
            raise ValueError(f"steps_left must be at least 1, got {shown(steps_left)}.")
    if extraction == "reward":
        return extraction, None
    if cost_limit is None and cost_budget is None:
        raise ValueError("extraction='safe' needs cost_limit, or cost_budget with steps_left.")
    return extraction, CostAllowance(budget, steps, risk)
"""What a shipped pipeline checks: arguments, settings, components and files.

Saving puts this file into `pipeline.py` with `spi_policy.py`, so it needs only torch and NumPy.
"""

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


INDEX_FILE = "model_index.json"
#: The entry of the index that holds the SHA-256 of every file of the policy, and of the rest of the index.
#: diffusers ignores it, but downloads it with the index.
CHECKSUMS = "_sha256"

logger = logging.getLogger(__name__)


def make_settings_plain(*parts: Any) -> None:
    """Turn numbers of other libraries in the settings of components into those that a config file holds."""
    for part in parts:
        settings = {} if part is None else {name: (old, as_plain(old)) for name, old in part.config.items()}
        changed = {name: new for name, (old, new) in settings.items() if new is not old}
        if changed:
            part.register_to_config(**changed)


def without_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a pipeline's call: inside the caller's `torch.autocast`, too, it acts as it always does."""

    @functools.wraps(call)
    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = self.normalizer.mean.device.type
        if not torch.is_autocast_enabled(device):
            return call(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return call(self, *args, **kwargs)

    return own


def as_numbers(name: str, value: Any, kinds: str = "iuf") -> Any:
    """Numbers of any library as float32, in an array that is checked sooner than a tensor.

    Args:
        name: What messages call them.
        value: A number, a torch tensor, or what NumPy makes an array of.
        kinds: NumPy's letters of the data types that are taken; "b" for true and false.

    Returns:
        An array of its own, of the same shape; of a tensor a tensor, where it was.

    Raises:
        ValueError: As `as_floats`.
    """
    if isinstance(value, Tensor):
        no_bool = value.dtype == torch.bool and "b" not in kinds
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or no_bool:
            kind = f"{value.dtype}, {value.layout}"
            raise ValueError(f"{name} must be a number or a dense array of numbers, got a tensor of {kind}.")
        if value.is_meta or value.is_nested:
            raise ValueError(f"{name} must be a tensor with one block of numbers in memory.")
        return value.detach().to(torch.float32)
    return as_floats(name, value, kinds)


def as_batch(observation: Any, size: int, device: torch.device) -> tuple[Tensor, bool, bool]:
    """Check an observation.

    Args:
        observation: Shape (size,) or (B, size), of any kind that NumPy takes.
        size: Numbers in an observation.
        device: Where to put it.

    Returns:
        The observation as (B, size), float32; whether it was a single one; whether it was no torch tensor.

    Raises:
        ValueError: It has another shape, holds something else than numbers, or NaN or infinity.
    """
    numbers = as_numbers("observation", observation, kinds="biuf")
    check_batch(numbers, size)
    tensor, single = torch.as_tensor(numbers, device=device), numbers.ndim == 1
    return (tensor.unsqueeze(0) if single else tensor), single, not isinstance(observation, Tensor)


def per_observation(name: str, value: Any, batch: int) -> Any:
    """A number, or one per observation, as `as_numbers`: (), (1,) or (B,)."""
    numbers = as_numbers(name, value)
    check_per_observation(name, numbers, batch)
    return numbers


def per_cost(name: str, value: Any, names: Sequence[str], batch: int) -> Any:
    """A number for each of K costs, for all observations or for each of B, as `as_numbers`: (K,) to (B, K).

    Args:
        name: What messages call it.
        value: For one cost a number or (B,); for several (K,), (B, K), or by name one of the former of each.
        names: Of the costs.
        batch: Number B of observations.

    Raises:
        ValueError: It has another shape, names other costs, or is not finite.
    """
    if isinstance(value, Mapping):
        if value.keys() != set(names):
            raise ValueError(f"{name} must name the costs {', '.join(names)}, got {shown(list(value))}.")
        each = [to_numpy(per_observation(f"{name}[{cost!r}]", value[cost], batch)) for cost in names]
        return np.stack(np.broadcast_arrays(*each), axis=-1)
    if len(names) == 1:
        return per_observation(name, value, batch)[..., None]
    count = len(names)
    numbers = as_numbers(name, value)
    if tuple(numbers.shape) not in ((count,), (1, count), (batch, count)):
        raise ValueError(
            f"{name} has shape {tuple(numbers.shape)}; pass {count} numbers, of the costs "
            f"{', '.join(names)}, or ({batch}, {count})."
        )
    if not bool((abs(numbers) < math.inf).all()):
        raise ValueError(f"{name} is NaN or infinite: {shown(value)}.")
    return numbers


def as_generator(generator: Any) -> torch.Generator | None:
    """A source of randomness from itself, or from a seed; ValueError for anything else."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    try:
        return torch.Generator().manual_seed(as_number("generator", generator, 0, whole=True))
    except ValueError:
        raise ValueError(
            "generator must be one torch.Generator for the whole batch, or a seed (a whole number of 0 or "
            f"more), got {shown(generator)}."
        ) from None


def check_given(**components: Any) -> None:
    """Raise ValueError if a component is None."""
    for name, component in components.items():
        if component is None:
            raise ValueError(f"The {name} is missing: a policy cannot act without it.")


def check_finite(**networks: Any) -> None:
    """Raise ValueError if a weight of a network is NaN or infinite."""
    for name, network in networks.items():
        bad = [key for key, value in network.state_dict().items() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(f"The {name}'s weights are not finite: {bad[0]} ({len(bad)} in all).")


def check_same(key: str, **components: Any) -> None:
    """Raise ValueError if components differ in a setting that they must share."""
    (first, expected), *others = ((name, component.config[key]) for name, component in components.items())
    for name, value in others:
        if value != expected:
            raise ValueError(
                f"The {name}'s {key} is {value}, but the {first}'s is {expected}: these components do not "
                "belong together."
            )


def index_sha256(index: Mapping[str, Any]) -> str:
    """SHA-256 of a `model_index.json`, with the checksums of all other files, but for this very number."""
    others = {name: value for name, value in index[CHECKSUMS].items() if name != INDEX_FILE}
    rest = {**index, CHECKSUMS: others}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def damaged_files(folder: str, index: Mapping[str, Any]) -> list[str]:
    """Files of a policy folder that are not those that were saved, by the checksums in its index.

    Files that are not there are left out: a part of a repository may have been downloaded.
    """
    if CHECKSUMS not in index:
        logger.warning("%s: has no checksums, so damage would not be seen; save it again.", folder)
        return []
    sums = index[CHECKSUMS]
    if not isinstance(sums, dict) or sums.get(INDEX_FILE) != index_sha256(index):
        return [INDEX_FILE]
    damaged = []
    for name in sorted(sums.keys() - {INDEX_FILE}):
        path = os.path.join(folder, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            return [INDEX_FILE]
        if os.path.isfile(path) and _sha256(path) != sums[name]:
            damaged.append(name)
    return damaged


def _sha256(path: str) -> str | None:
    """None where the disk does not give the file back."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def check_origin(component: Any) -> None:
    """Raise ValueError if the policy folder that a component was just loaded from is damaged."""
    folder = os.path.dirname(str(component.config.get("_name_or_path", "")))
    path = os.path.join(folder, INDEX_FILE)
    if folder and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            damaged = damaged_files(folder, json.load(file))
        if damaged:
            place = os.path.join(folder, damaged[0])
            raise ValueError(
                f"{place} is damaged: its checksum is not the one in {INDEX_FILE}. Get it anew; from the Hub "
                "with force_download=True."
            )
"""What a controller asks of a policy beside its actions.

Shipped as a part of `pipeline.py`, so it needs only torch and NumPy.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

"""Acting under a cost limit: counts steps, spends the budget, learns from episodes that are over.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

"""What a controller learns from episodes that are over: one factor on all predicted costs.

Shipped as a part of `pipeline.py`.
"""

import math

#: By how much the logarithm of the scale rises with an episode over the limit, for few environments.
RATE = 0.3
#: From a scale of 100 on, nothing is relied on: the safest policy acts.
LARGEST_LOG_SCALE = math.log(100.0)
#: More environments than this that end together count as much as these: one round must not decide for ever.
FEW_ENVS = 10


class AdaptiveScale:
    """By which factor costs are taken for higher than predicted, so that the share over a limit is the risk.

    Adaptive conformal inference (Gibbs and Candes 2021), one-sided. After every budget that is used up,

        log scale += rate * (over - risk),    over = 1 if the cost exceeded the limit, else 0.

    **Bound.** Whatever the critics predict and the environment does, after T budgets in N environments

        share over <= risk + (B + N rate) / (rate T),    B = log 100,

    if the safest policy keeps the limit where it acts from the start. Proof: the steps add up to
    rate * (times over - risk T) <= log scale, as all that departs from the rule raises it; and the scale
    stays below B + N rate, as from B on the safest policy acts, so that only what runs already adds to it.
    This holds for T in a row, not for one episode. Where not even the safest policy keeps the limit nothing
    can be promised; the scale then stays at that bound, so that it finds back when it can.

    Two things depart from the rule, both to the safe side. The scale is at least 1/100. And it does not fall
    after an episode in which every candidate fitted at every step: a smaller one would have changed nothing,
    and would be missing later.

    Args:
        risk: Share of budgets that may be exceeded, in (0, 1).
        num_envs: Number N of environments that share the scale. More than 10 lower the rate, to 3 / N.

    Attributes:
        log: Natural logarithm of the scale.
        rate: Of each budget.
    """

    def __init__(self, risk: float, num_envs: int = 1) -> None:
        self.risk = risk
        self.rate = RATE * min(1.0, FEW_ENVS / num_envs)
        self.largest_log = LARGEST_LOG_SCALE + num_envs * self.rate
        self.log = 0.0

    @property
    def value(self) -> float:
        """The factor, 1 at first."""
        return math.exp(self.log)

    @property
    def trusts_nothing(self) -> bool:
        """Whether only the safest policy may act."""
        return self.log >= LARGEST_LOG_SCALE

    def update(self, over: int, within: int) -> None:
        """Count budgets that ended.

        Args:
            over: How many were exceeded.
            within: How many were not, without those for which the scale made no difference.
        """
        log = self.log + self.rate * (over - self.risk * (over + within))
        self.log = min(max(log, -LARGEST_LOG_SCALE), self.largest_log)
"""The books of a controller: steps done and cost spent, by environment, episode and budget.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


AUTORESETS = ("disabled", "next_step", "same_step")
#: What an environment is doing: it has not begun; acts; has ended; will be reset by the next step.
NEW, ACTIVE, ENDED, RESETTING = range(4)


class Ledger:
    """Counts K costs for N environments. A budget is for one episode, or for several in a row.

    Args:
        cost_limit: Limit of a budget; see `numbers`.
        num_envs: Number N of environments.
        episodes: Episodes that a budget is for.
        max_episode_steps: Steps of an episode, at most.
        autoreset: What a vector environment does after an end: the name of one of Gymnasium's modes, or it.
        cost_names: Names of the costs.

    Attributes:
        limit: Of each environment and cost, (N, K).
        before: Costs of its budget in episodes before this one, (N, K).
        spent: Costs in this episode, (N, K).
        phase: What it is doing, (N,) like all that follow.
        steps: Done in this episode.
        episode: Number of the episode in its budget.
        silent: Whether it ended by its number of steps, and did not say so.
        whole: Whether no episode of the budget was given up.
        observed: Whether a cost of the budget was observed.
        estimated: Whether a cost of the budget was estimated.
        mattered: Whether a smaller scale might have changed an action under this budget.
        finished: How many budgets with observed costs have come to their end.
        exceeded: How many of these were exceeded, by any of the costs.

    Raises:
        ValueError: An argument is out of its range.
    """

    ARRAYS = (
        *("limit", "phase", "before", "spent", "steps", "episode", "silent", "whole"),
        *("observed", "estimated", "mattered"),
    )

    def __init__(
        self,
        cost_limit: Any,
        num_envs: Any,
        episodes: Any,
        max_episode_steps: Any,
        autoreset: Any,
        cost_names: Sequence[str] = ("cost",),
    ) -> None:
        self.cost_names = tuple(cost_names)
        self.num_envs: int = as_number("num_envs", num_envs, 1, whole=True)
        self.episodes: int = as_number("episodes", episodes, 1, whole=True)
        self.max_episode_steps: int = as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        mode = getattr(autoreset, "name", autoreset)
        if not isinstance(mode, str) or mode.lower() not in AUTORESETS:
            raise ValueError(f"autoreset must be one of {AUTORESETS}, got {shown(autoreset)}.")
        self.autoreset = mode.lower()
        self.limit = self.numbers("cost_limit", cost_limit)
        self.phase = np.full(self.num_envs, NEW)
        self.before, self.spent = np.zeros((2, self.num_envs, len(self.cost_names)))
        self.steps, self.episode = np.zeros((2, self.num_envs), dtype=np.int64)
        self.silent, self.whole, self.observed, self.estimated, self.mattered = np.zeros(
            (5, self.num_envs), dtype=bool
        )
        self.finished = self.exceeded = 0

    @property
    def total(self) -> np.ndarray:
        """Costs spent of each budget, (N, K)."""
        return self.before + self.spent

    @property
    def left(self) -> np.ndarray:
        """What the rest of each episode may cost, (N, K); negative once it has cost too much."""
        return (self.limit - self.before) / (self.episodes - self.episode)[:, None] - self.spent

    @property
    def over(self) -> np.ndarray:
        """Whether more was spent than a limit."""
        return np.any(self.total > self.limit, axis=1)

    def check_turn(self) -> np.ndarray:
        """Whose episodes go on; RuntimeError: there is nothing to act in, or more steps than there are."""
        if (new := self.phase == NEW).any():
            raise RuntimeError(f"{self.names(new)} has no episode yet: call reset first.")
        if self.silent.any():
            raise RuntimeError(
                f"{self.names(self.silent)} has done the {self.max_episode_steps} steps of an episode: call "
                "reset, or make the controller with max_episode_steps=... if episodes are longer."
            )
        if (self.phase == ENDED).all():
            raise RuntimeError("The episode has ended: call reset.")
        return self.phase == ACTIVE

    def record(
        self, acted: np.ndarray, costs: np.ndarray, ended: np.ndarray, *, estimated: bool
    ) -> tuple[int, int]:
        """Count a step of the environments that acted; what `_judge` says of the budgets that it ended."""
        resetting = self.phase == RESETTING
        self.spent[acted] += costs[acted]
        self.steps += acted
        (self.estimated if estimated else self.observed)[acted] = True
        is_over = acted & (ended | (self.steps >= self.max_episode_steps))
        judged = (0, 0)
        if is_over.any():
            self.phase[is_over] = ENDED
            self.silent |= is_over & ~ended
            judged = self._judge(is_over & (self.episode + 1 == self.episodes))
            if self.autoreset == "next_step":
                self.phase[is_over & ended] = RESETTING
            elif self.autoreset == "same_step":
                self._begin(is_over & ended)
        if resetting.any():
            self._begin(resetting)
        return judged

    def reset(self, chosen: np.ndarray, limit: np.ndarray | None) -> tuple[int, int]:
        """Begin an episode; with a limit, of a new budget. What `_judge` says of budgets that this ended."""
        renewed = chosen if limit is not None else np.zeros_like(chosen)
        given_up = chosen & (self.phase == ACTIVE)
        is_last = self.episode + 1 == self.episodes
        self.whole &= ~(given_up | (renewed & ~is_last))
        judged = self._judge((given_up & is_last) | (renewed & (given_up | ~is_last)))
        if limit is not None:
            self.limit = np.where(chosen[:, None], limit, self.limit)
        self._begin(chosen, renewed)
        return judged

    def set_limit(self, chosen: np.ndarray, limit: np.ndarray) -> None:
        """Change limits; ValueError: one is below what is spent."""
        goes_on = (self.phase == ACTIVE) | (self.episode + 1 < self.episodes)
        below = (chosen & goes_on)[:, None] & (limit < self.total)
        if below.any():
            place = np.unravel_index(below.argmax(), below.shape)
            raise ValueError(
                f"cost_limit {limit[place]:g} is below what {self.names(below.any(axis=1))} spent, "
                f"{self.total[place]:g}, so it is broken already: begin a new budget by "
                "reset(cost_limit=...)."
            )
        self.limit = np.where(chosen[:, None], limit, self.limit)

    def _begin(self, rows: np.ndarray, renewed: np.ndarray | None = None) -> None:
        """Begin an episode; of a new budget where the old one had its episodes, or is `renewed`."""
        is_new = rows & ((self.phase == NEW) | (self.episode + 1 == self.episodes))
        is_new = is_new if renewed is None else is_new | renewed
        self.before = np.where(is_new[:, None], 0.0, np.where(rows[:, None], self.total, self.before))
        self.episode = np.where(is_new, 0, self.episode + rows)
        self.phase[rows], self.spent[rows], self.steps[rows], self.silent[rows] = ACTIVE, 0.0, 0, False
        self.whole |= is_new
        for flags in (self.observed, self.estimated, self.mattered):
            flags[is_new] = False

    def _judge(self, rows: np.ndarray) -> tuple[int, int]:
        """How many budgets that came to their end were exceeded; and how many not, though the scale mattered.

        Those with estimated costs are left out, and those that were given up before they were exceeded.
        """
        over = self.over
        known = rows & self.observed & ~self.estimated & (self.whole | over)
        exceeded = int((known & over).sum())
        self.finished += int(known.sum())
        self.exceeded += exceeded
        return exceeded, int((known & ~over & self.mattered).sum())

    def mask(self, name: str, value: Any) -> np.ndarray:
        """Yes or no for each environment, from one of them or (N,)."""
        mask = to_numpy(value)
        if mask.dtype.kind != "b" or mask.shape not in ((), (self.num_envs,)):
            many = "" if self.num_envs == 1 else f", or {self.num_envs} of these"
            raise ValueError(f"{name} must be true or false{many}; got {shown(value)}.")
        return mask if mask.ndim else np.full(self.num_envs, mask)

    def numbers(self, name: str, value: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """A number of at least 0 for each environment and cost, (N, K) float64; only `rows` are checked.

        For one cost from a number or (N,); for several from (K,), (N, K), or by name one of the former of
        each.
        """
        if isinstance(value, Mapping):
            if value.keys() != set(self.cost_names):
                there = ", ".join(self.cost_names)
                raise ValueError(f"{name} must name the costs {there}, got {shown(list(value))}.")
            each = [self._one_each(f"{name}[{cost!r}]", value[cost]) for cost in self.cost_names]
            numbers = np.stack(each, axis=1)
        elif len(self.cost_names) == 1:
            numbers = self._one_each(name, value)[:, None]
        else:
            array, shape = to_numpy(value), (self.num_envs, len(self.cost_names))
            if array.dtype.kind not in "iuf" or array.shape not in (shape[1:], shape):
                kinds = f"{shape[1]} numbers, of the costs {', '.join(self.cost_names)}"
                raise ValueError(f"{name} must be {kinds}, or {shape} of them; got {shown(as_plain(value))}.")
            numbers = np.broadcast_to(array, shape).astype(np.float64)
        good = (numbers >= 0) & (numbers <= LARGEST)
        if not (good if rows is None else good[rows]).all():
            raise ValueError(f"{name} must be finite and not negative; got {shown(as_plain(value))}.")
        return numbers

    def _one_each(self, name: str, value: Any) -> np.ndarray:
        """A number for each environment, from one or (N,); float64."""
        array = to_numpy(value)
        if array.dtype.kind not in "iuf" or array.shape not in ((), (self.num_envs,)):
            many = "" if self.num_envs == 1 else f", or one for each of {self.num_envs} environments"
            raise ValueError(f"{name} must be a number{many}; got {shown(as_plain(value))}.")
        return array.astype(np.float64) if array.ndim else np.full(self.num_envs, array, np.float64)

    def names(self, rows: np.ndarray) -> str:
        """What messages call some of the environments."""
        if self.num_envs == 1:
            return "the environment"
        chosen = np.flatnonzero(rows)
        more = f" and {len(chosen) - 1} more" if len(chosen) > 1 else ""
        return f"environment {chosen[0]}{more}"

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as JSON holds it."""
        arrays = {name: self._plain(name).tolist() for name in self.ARRAYS}
        return {**arrays, "finished": self.finished, "exceeded": self.exceeded}

    def _plain(self, name: str) -> np.ndarray:
        """An array as a state holds it: of one cost (N,)."""
        values: np.ndarray = getattr(self, name)
        return without_one(values) if values.ndim > 1 else values

    def restored(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that a `state_dict` says; ValueError: it is none of so many environments."""
        known: dict[str, Any] = {
            name: as_array(name, state[name], self._plain(name)).reshape(getattr(self, name).shape)
            for name in self.ARRAYS
        }
        for name in ("finished", "exceeded"):
            known[name] = as_number(name, state[name], 0, whole=True)
        for name, beyond in (("phase", RESETTING + 1), ("episode", self.episodes)):
            if (known[name] >= beyond).any():
                raise ValueError(f"{name} in the state must lie below {beyond}, got {shown(state[name])}.")
        return known


def as_array(name: str, values: Any, like: np.ndarray) -> np.ndarray:
    """An entry of a state as an array like another one; ValueError: it cannot be."""
    kind = like.dtype.kind
    try:
        array = np.asarray(values)
        good = array.shape == like.shape and array.dtype.kind in ("iuf" if kind == "f" else kind)
        good = good and (kind == "b" or bool(((array >= 0) & (array <= LARGEST)).all()))
    except ValueError:  # lists of several lengths
        good = False
    if not good:
        what = {"b": "true or false", "i": "whole numbers of at least 0", "f": "numbers of at least 0"}[kind]
        raise ValueError(f"{name} in the state must be {like.size} times {what}; got {shown(values)}.")
    return array.astype(like.dtype)


class InfeasibleError(RuntimeError):
    """No candidate keeps the budget, and the controller was told to raise then.

    Attributes:
        mask: Which environments, bool (N,).
    """

    def __init__(self, message: str, mask: np.ndarray) -> None:
        super().__init__(message)
        self.mask = mask


class SafeController:
    """Keeps a cost limit in one environment, or in N side by side; `SPIPolicyPipeline.controller` makes it.

    Of a policy with K > 1 costs every limit is kept: an episode is over the limit if any of them is.

    `act` tells the policy what is left of the limit and of the episode, `observe` counts what a step cost.
    With the scale at 1, actions are those of `pipe(observation, cost_budget=limit - cost, steps_left=left)`.

    Over several episodes it corrects what the critics get wrong: the more often the limit is exceeded, the
    larger a factor on all predicted costs gets, so that in the long run the share of episodes over the limit
    is at most `risk`. What is guaranteed, and when, says `AdaptiveScale`. Where costs are estimated, or an
    episode was given up while it was within its limit, nothing is learned.

    Args:
        pipeline: A policy with an evaluation critic, or one that was exported (`spi_diffusers.runtime`).
        cost_limit: Cost that an episode may have (with `episodes`: so many of them together), in units of
            cost, >= 0; a number, or one for each environment. Of K > 1 costs (K,), (N, K), or a dict by
            name.
        risk: Share of the episodes that may exceed the limit, in (0, 1).
        num_envs: Number N of environments.
        episodes: Episodes in a row that the limit is for. Each may cost what is left of it, in equal parts.
        max_episode_steps: Steps of an episode; by default the policy's. An episode may end earlier.
        autoreset: What a vector environment does after an end, as Gymnasium's `AutoresetMode`, or its name:
            "disabled" (you reset it, and call `reset` for it here), "next_step" (the next step ignores the
            action and resets; it is not counted), or "same_step" (the step that ends resets as well).
        adapt: Whether to learn from episodes that are over.
        on_infeasible: What to do where no candidate keeps the budget. None: the safest acts, and `status`
            says so. "raise": `act` raises an [`InfeasibleError`] and nothing has changed. A function: is
            called with the controller and a mask (N,) of these environments before `act` returns.
        num_inference_steps: As in `SPIPolicyPipeline.__call__`.
        generator: As there.
        fast: As there: the policy's student answers where it knows its way about.

    Raises:
        ValueError: An argument is out of its range, or the policy has no evaluation critic.
    """

    def __init__(
        self,
        pipeline: Any,
        cost_limit: Any,
        *,
        risk: float = DEFAULT_RISK,
        num_envs: int = 1,
        episodes: int = 1,
        max_episode_steps: int | None = None,
        autoreset: Any = "disabled",
        adapt: bool = True,
        on_infeasible: str | Callable[["SafeController", np.ndarray], Any] | None = None,
        num_inference_steps: int | None = None,
        generator: Any = None,
        fast: bool = False,
    ) -> None:
        pipeline.check_keeps_limits()
        if not (on_infeasible in (None, "raise") or callable(on_infeasible)):
            raise ValueError(
                f"on_infeasible must be None, 'raise' or a function, got {shown(on_infeasible)}."
            )
        if not isinstance(adapt, bool | np.bool_):
            raise ValueError(f"adapt must be true or false, got {shown(adapt)}.")
        if max_episode_steps is None:
            max_episode_steps = pipeline.max_episode_steps
        self.pipeline, self.risk, self.adapt = pipeline, check_risk(risk), bool(adapt)
        self.on_infeasible = on_infeasible
        sampling = {"num_inference_steps": num_inference_steps, "generator": generator, "fast": fast or None}
        self._sampling = {name: value for name, value in sampling.items() if value is not None}
        names = getattr(pipeline, "cost_names", ("cost",))  # an exported policy has one cost
        self._ledger = Ledger(cost_limit, num_envs, episodes, max_episode_steps, autoreset, names)
        self.num_envs = self._ledger.num_envs
        self._scale = AdaptiveScale(self.risk, self.num_envs)
        # Whether nothing fitted at the last action; whether its observation was unlike the data.
        self._tight, self._outside = np.zeros((2, self.num_envs), dtype=bool)
        # Who was given an action that is not observed yet, and what its cost is estimated from, or to be.
        self._acted: np.ndarray | None = None
        self._chosen: tuple[np.ndarray, np.ndarray, Any] | None = None
        self._estimate: np.ndarray | None = None
        self._low, self._high = pipeline.support
        self._idle = pipeline.middle_action

    # ---- what happened so far

    @property
    def cost_limit(self) -> Any:
        """The limit; like all of these a number, or for several environments an array (N,).

        Of K > 1 costs (K,), or (N, K), like `spent`.
        """
        return self._shown(without_one(self._ledger.limit))

    @property
    def spent(self) -> Any:
        """Cost so far, of the episodes that the limit is for."""
        return self._shown(without_one(self._ledger.total))

    @property
    def steps(self) -> Any:
        """Steps done in the episode."""
        return self._shown(self._ledger.steps)

    @property
    def scale(self) -> float:
        """By which factor costs are taken for higher than predicted; one for all environments."""
        return self._scale.value

    @property
    def finished(self) -> int:
        """How many episodes (or budgets for several) have ended with all costs observed."""
        return self._ledger.finished

    @property
    def exceeded(self) -> int:
        """How many of the finished ones were over their limit."""
        return self._ledger.exceeded

    @property
    def status(self) -> Any:
        """How it stands: the first that holds of

        * "overspent": more was spent than the limit;
        * "out of support": the last observation was unlike those of the data, so predictions mean little;
        * "tight": no candidate keeps the budget, so the safest acts;
        * "within".
        """
        status = np.full(self.num_envs, "within", dtype="<U14")
        status[self._tight] = "tight"
        status[self._outside] = "out of support"
        status[self._ledger.over] = "overspent"
        return self._shown(status)

    @property
    def cost_source(self) -> Any:
        """Where the cost spent comes from: "observed", "estimated" (by the policy) or "mixed"; "none" yet."""
        names = np.array(["none", "observed", "estimated", "mixed"])
        return self._shown(names[self._ledger.observed + 2 * self._ledger.estimated])

    def __repr__(self) -> str:
        books = self._ledger
        names, counts = np.unique(np.atleast_1d(self.status), return_counts=True)
        one = self.num_envs == 1
        parts = ["" if one else f"num_envs={self.num_envs}", f"cost_limit={_spans(books.limit)}"]
        parts += [f"risk={self.risk:g}", f"spent={_spans(books.total)}"]
        parts += [f"steps={_span(books.steps)} of {books.max_episode_steps}"]
        parts += [name if one else f"{name}: {count}" for name, count in zip(names, counts, strict=True)]
        parts += [f"scale={self.scale:.3g}", f"{self.exceeded} of {self.finished} over"]
        return f"SafeController({', '.join(part for part in parts if part)})"

    # ---- the loop

    def reset(self, mask: Any = None, cost_limit: Any = None) -> None:
        """Begin an episode.

        Args:
            mask: Which environments, bool (N,); by default all.
            cost_limit: A limit for them from now on, as at first. With it a new budget begins, else one
                begins after its `episodes`.

        Raises:
            ValueError: The mask has another shape, or a limit is negative or not finite.
        """
        books = self._ledger
        chosen = books.mask("mask", True if mask is None else mask)
        limit = None if cost_limit is None else books.numbers("cost_limit", cost_limit, chosen)
        self._learn(books.reset(chosen, limit))
        self._tight, self._outside = self._tight & ~chosen, self._outside & ~chosen
        if self._acted is not None:
            self._acted = None if chosen.all() else self._acted & ~chosen

    def set_cost_limit(self, cost_limit: Any, mask: Any = None) -> None:
        """Change the limit of what is going on, and of what follows.

        Args:
            cost_limit: As at first.
            mask: Which environments, bool (N,); by default all.

        Raises:
            ValueError: The limit is negative or not finite, or below what is spent already.
        """
        chosen = self._ledger.mask("mask", True if mask is None else mask)
        self._ledger.set_limit(chosen, self._ledger.numbers("cost_limit", cost_limit, chosen))

    def act(self, observation: Any) -> Any:
        """Choose actions by one call of the policy.

        Args:
            observation: (O,) or (1, O) for one environment, else (N, O); not normalized. What it holds for
                environments that have ended is not looked at.

        Returns:
            Actions in the environment's range, (A,) or (N, A); NumPy or torch, as the observation was.
            Environments that have ended get an action from the middle of the range.

        Raises:
            RuntimeError: `reset` was not called, or `observe` after the last action, or an episode is over.
            InfeasibleError: No candidate keeps the budget, with `on_infeasible="raise"`.
            ValueError: An observation of another shape or number, or with NaN.
        """
        active = self._ledger.check_turn()
        if self._acted is not None:
            raise RuntimeError("act was called twice in a row: report each step by observe(cost, ended).")
        is_tensor = hasattr(observation, "detach")
        if not is_tensor and not isinstance(observation, np.ndarray):
            observation = as_floats("observation", observation, kinds="biuf")
            check_batch(observation, len(self._low))
        single = self.num_envs == 1 and observation.ndim == 1
        if not single and (observation.ndim != 2 or len(observation) != self.num_envs):
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}, but the controller has {self.num_envs} "
                "environment(s): pass one row for each, or make it with num_envs=..."
            )
        if active.all():
            actions = self._choose(observation, active)
        else:
            actions = self._idle[None][[0] * self.num_envs]
            actions = actions if is_tensor else to_numpy(actions)
            actions = actions[0] if single else actions
            if active.any():
                actions[active] = self._choose(observation[active], active)
        self._acted = active
        return actions

    def observe(self, cost: Any = None, ended: Any = False) -> None:
        """Count a step.

        Args:
            cost: What it cost, >= 0, a number or (N,); of K > 1 costs (K,), (N, K), or a dict by name. None:
                it was not reported, and the policy's own model of the cost of its action counts.
            ended: Whether it ended the episode, a bool or (N,): terminated or truncated. An episode that has
                had all its steps needs no report.

        Raises:
            RuntimeError: `act` was not called since the last step.
            ValueError: A cost is negative, not finite or of another shape.
        """
        acted = self._acted
        if acted is None:
            raise RuntimeError("observe counts the step that follows act: call act first.")
        books = self._ledger
        is_ended = books.mask("ended", ended)
        costs = self._estimated_costs() if cost is None else books.numbers("cost", cost, acted)
        self._acted = self._chosen = self._estimate = None
        self._learn(books.record(acted, costs, is_ended, estimated=cost is None))

    # ---- its state

    def state_dict(self) -> dict[str, Any]:
        """All that a controller with the same arguments needs to go on exactly, as JSON holds it."""
        state = {**self._settings(), **self._ledger.state_dict(), "log_scale": self._scale.log}
        state |= {"tight": self._tight.tolist(), "outside": self._outside.tolist()}
        state["acted"] = None if self._acted is None else self._acted.tolist()
        state["estimate"] = None if self._acted is None else without_one(self._estimated_costs()).tolist()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a controller was when it gave its `state_dict`.

        Raises:
            ValueError: It is none, or one of a controller with other arguments. Nothing has changed then.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != own.keys():
            raise ValueError(f"A controller's state has the entries {', '.join(own)}; got {shown(state)}.")
        for name, value in self._settings().items():
            if state[name] != value:
                raise ValueError(
                    f"The state is of a controller with {name}={shown(state[name])}, this one has {value!r}."
                )
        like, acted, estimate = self._tight, state["acted"], state["estimate"]
        if (acted is None) != (estimate is None):
            raise ValueError("acted and estimate in the state belong together: both or none.")
        books, largest = self._ledger.restored(state), self._scale.largest_log
        log = float(as_number("log_scale", state["log_scale"], -largest, largest))
        tight, outside = (as_array(name, state[name], like) for name in ("tight", "outside"))
        acted = None if acted is None else as_array("acted", acted, like)
        like_costs = self._ledger.spent
        if estimate is not None:
            estimate = as_array("estimate", estimate, without_one(like_costs)).reshape(like_costs.shape)
        vars(self._ledger).update(books)
        self._scale.log, self._tight, self._outside = log, tight, outside
        self._acted, self._chosen, self._estimate = acted, None, estimate

    # ---- how it works

    def _learn(self, judged: tuple[int, int]) -> None:
        if self.adapt:
            self._scale.update(*judged)

    def _choose(self, observation: Any, active: np.ndarray) -> Any:
        """The policy's actions for some environments, (B, A), or for one, from their observations."""
        # A copy: environments may write their next observation into the same memory.
        is_tensor = hasattr(observation, "detach")
        seen = np.array(to_numpy(observation.float()) if is_tensor else observation)
        books, left = self._ledger, self._ledger.left
        if self._scale.trusts_nothing:
            left = np.minimum(left, 0.0)
        elif self._scale.log != 0.0:
            left = left / self._scale.value
        output = self.pipeline(
            observation,
            extraction="safe",
            cost_budget=without_one(left[active]),
            steps_left=(books.max_episode_steps - books.steps)[active],
            risk=self.risk,
            **self._sampling,
        )
        fits = to_numpy(output.feasible)
        infeasible = np.zeros(self.num_envs, dtype=bool)
        infeasible[active] = ~fits[:, -1]  # if any fits, the safest does
        if self.on_infeasible == "raise" and infeasible.any():
            message = f"No candidate keeps the budget of {books.names(infeasible)}: no action is given."
            raise InfeasibleError(message, infeasible)
        self._tight[active] = ~fits[:, -1]
        self._outside[active] = ((seen < self._low) | (seen > self._high)).any(axis=-1)
        books.mattered[active] |= ~fits[:, 0]  # if the least safe fits, all do
        self._chosen = (active, seen, output)
        if callable(self.on_infeasible) and infeasible.any():
            self.on_infeasible(self, infeasible)
        return output.actions

    def _estimated_costs(self) -> np.ndarray:
        """What the last actions cost, by the policy's own model, (N, K)."""
        if self._estimate is None:
            self._estimate = np.zeros_like(self._ledger.spent)
            if self._chosen is not None:
                active, seen, output = self._chosen
                costs = to_numpy(self.pipeline.step_costs(seen, output))
                self._estimate[active] = costs.reshape(len(costs), -1)
        return self._estimate

    def _shown(self, values: np.ndarray) -> Any:
        shown = values.copy() if self.num_envs > 1 else values[0].copy()
        return shown if shown.ndim else shown.item()

    def _settings(self) -> dict[str, Any]:
        books = self._ledger
        names = ("num_envs", "episodes", "max_episode_steps", "autoreset")
        return {**{name: getattr(books, name) for name in names}, "risk": self.risk, "adapt": self.adapt}


def _spans(costs: np.ndarray) -> str:
    """Ranges of K costs, (N, K)."""
    return ", ".join(_span(values) for values in costs.T)


def _span(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"

#: Part of the width of the data by which an observation may lie outside of it, and the least such distance,
#: in standard deviations.
SUPPORT_SLACK = 0.1


class ControlledPolicy:
    """Mixed into the pipeline; `spi_diffusers.runtime` has the same for a policy that was exported."""

    config: Any
    noise_model: Any
    normalizer: Any
    evaluation_critic: Any
    student: Any

    def controller(
        self,
        cost_limit: Any,
        *,
        risk: float = DEFAULT_RISK,
        num_envs: int = 1,
        **options: Any,
    ) -> SafeController:
        """What keeps count of cost and steps in a loop, and learns from episodes that are over.

        Args:
            cost_limit: Cost that an episode may have; a number, or one for each environment. Of K > 1 costs
                (K,), (N, K), or a dict by `cost_names`.
            risk: Share of the episodes that may exceed it, in (0, 1).
            num_envs: Number of environments side by side.
            **options: The others of [`SafeController`], which explains all of them.
        """
        return SafeController(self, cost_limit, risk=risk, num_envs=num_envs, **options)

    def check_keeps_limits(self) -> None:
        """Raise ValueError if the policy cannot keep a limit."""
        if self.evaluation_critic is None:
            raise ValueError("This policy has no evaluation critic, so it cannot keep a limit.")

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the costs that a limit is for; a policy of one cost has "cost"."""
        return ("cost",) if self.evaluation_critic is None else tuple(self.evaluation_critic.cost_names)

    @property
    def max_episode_steps(self) -> int | None:
        """Steps of an episode."""
        return cast("int | None", self.config.max_episode_steps)

    @property
    def middle_action(self) -> Tensor:
        """The middle of the environment's range, (A,)."""
        nothing = torch.zeros(self.noise_model.config.action_dim, device=self.normalizer.mean.device)
        return cast(Tensor, self.noise_model.to_environment_range(nothing))

    @property
    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """Between which observations, each (O,), those of the data lie, and a little more."""
        normalizer = self.normalizer
        low, high = self.evaluation_critic.observed_range.double().cpu().numpy()
        if not (low.any() or high.any()):  # fitted on no data
            return np.full_like(low, -np.inf), np.full_like(high, np.inf)
        slack = np.maximum(SUPPORT_SLACK * (high - low), SUPPORT_SLACK)
        low, high, clip = low - slack, high + slack, normalizer.config.clip
        # The policy sees nothing of how far beyond the clip a number lies.
        low, high = np.where(low <= -clip, -np.inf, low), np.where(high >= clip, np.inf, high)
        mean, std = (part.double().cpu().numpy() for part in (normalizer.mean, normalizer.std))
        return mean + std * low, mean + std * high

    @torch.no_grad()
    @without_autocast
    def step_costs(self, observations: np.ndarray, output: Any) -> Tensor:
        """What chosen actions are expected to cost in the very step, (B,); of K > 1 costs (B, K).

        Args:
            observations: What the policy acted on, (B, O) or (O,), not normalized.
            output: What it answered.
        """
        rows = torch.arange(len(output.chosen), device=output.chosen.device)
        actions = self.noise_model.from_environment_range(output.candidates[rows, output.chosen])
        weights = output.safety_weights[rows, output.chosen]
        states, _, _ = as_batch(observations, observations.shape[-1], output.chosen.device)
        states, step = self.normalizer(states), torch.ones_like(weights)
        costs: Tensor = self.evaluation_critic(states, actions, weights, step, return_dict=False)[1]
        return cast(Tensor, without_one(costs))
"""What diffusers offers to all pipelines, for one of a few MB.

Shipped as a part of `pipeline.py`, so it needs only torch.
"""

from typing import Any, cast

import torch


class DiffusersMethods:
    """Mixed into a pipeline: copies of it, and devices to act on."""

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline of the components and settings of another one; those that are named are replaced."""
        # Named, as diffusers takes over only components that a pipeline is annotated with, and not any.
        return cast(Any, super()).from_pipe(pipeline, **{**pipeline.components, **kwargs})

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Move the whole policy to the device: to move its parts at each call would take longer than to act.

        Args:
            gpu_id: Number of the accelerator.
            device: The device; by default the machine's accelerator.

        Raises:
            RuntimeError: No device is named, and there is no accelerator.
        """
        device = device or torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            raise RuntimeError("There is no accelerator: name a device, or leave the policy where it is.")
        device = torch.device(device)
        cast(Any, self).to(device if gpu_id is None else torch.device(device.type, gpu_id))

    enable_sequential_cpu_offload = enable_model_cpu_offload

    def enable_group_offload(self, onload_device: Any, *args: Any, **kwargs: Any) -> None:
        """Move the whole policy to the device that it would be loaded onto, as `enable_model_cpu_offload`."""
        self.enable_model_cpu_offload(device=onload_device)
"""Extraction: which candidate is taken, by the paper's rule or under a cost limit.

Shipped as a part of `pipeline.py`, so it needs only torch and NumPy.
"""

from typing import Any, cast

import torch
from torch import Tensor


#: The safety weights whose policies safe extraction chooses from.
SAFETY_WEIGHT_GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Candidates with extraction "reward", where the caller names no number; and at most.
NUM_CANDIDATES, MAX_CANDIDATES = 50, 100_000

#: What N policies expect in each of B states, per step: the reward (B, N) and K costs (B, N, K).
Rates = tuple[Tensor, Tensor]


def extract_reward(reward_values: Tensor) -> Tensor:
    """Eq. 12: the candidate with the highest Q^r. (B, N) -> (B,)."""
    return reward_values.argmax(dim=1)


def extract_safe(returns: Tensor, costs: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """The policy with the highest return among those whose cost fits; where none fits, the safest one.

    A policy fits only if all safer ones fit as well: one that is predicted to cost less than a safer one is
    one that the critic is wrong about. For the same reason the safest one is the last, not the one with the
    least predicted cost. Nothing fits into a budget that is spent, whatever costs are predicted. Of several
    costs each must fit.

    Args:
        returns: Expected return of each of N policies over the steps left, shape (B, N), by safety weight.
        costs: K costs that each exceeds with the probability of the risk only, shape (B, N, K).
        budget: Costs that may still be caused, shape (B, K).

    Returns:
        Index of the chosen policy, shape (B,); and which ones fit, shape (B, N).
    """
    budget = budget.unsqueeze(1)
    fits = ((costs <= budget) & (budget > 0)).all(dim=2)
    misfits = (~fits).int().cumsum(dim=1)
    feasible = fits & (misfits == misfits[:, -1:])
    best = torch.where(feasible, returns, -torch.inf).argmax(dim=1)
    return torch.where(feasible.any(dim=1), best, costs.shape[1] - 1), feasible


def repeated(values: Tensor, count: int) -> Tensor:
    """Each of B rows `count` times in a row, (B count, ...); `repeat_interleave` takes longer."""
    return values.unsqueeze(1).expand(-1, count, *values.shape[1:]).flatten(0, 1)


def _tiled(weights: Tensor, batch: int) -> Tensor:
    """All of (N,) for each of B states, (B N,); `repeat` takes longer."""
    return weights.expand(batch, -1).flatten()


def policy_action(pipeline: Any, states: Tensor, weight: Tensor) -> Tensor:
    """How the policies of safety weights (B,) act in normalized states (B, O): actions in [-1, 1], (B, A)."""
    # Only a scheduler that draws noise in its own steps needs it.
    generator = torch.Generator().manual_seed(0)
    return pipeline.noise_model.sample(
        pipeline.scheduler, states, weight, generator=generator, temperature=0.0
    )


def candidate_weights(
    conditioned: bool,
    extraction: str,
    safety_weight: float | None,
    num_candidates: int | None,
    device: torch.device,
) -> tuple[Tensor | None, int]:
    """The safety weight of each candidate (N,), None for a model that is not conditioned; and N.

    Raises:
        ValueError: A weight or a number of candidates does not apply, or is out of its range.
    """
    count = NUM_CANDIDATES
    if num_candidates is not None:
        count = as_number("num_candidates", num_candidates, 1, MAX_CANDIDATES, whole=True)
    if not conditioned:
        if safety_weight is not None:
            raise ValueError("This policy was trained without a safety weight; do not pass one.")
        return None, count
    if safety_weight is not None:
        safety_weight = as_number("safety_weight", safety_weight, 0, 1)
    if extraction == "safe":
        if num_candidates is not None:
            raise ValueError(
                "Safe extraction has one candidate for each safety weight: num_candidates is for "
                "extraction='reward'."
            )
        grid = SAFETY_WEIGHT_GRID if safety_weight is None else (safety_weight,)
        return torch.tensor(grid, dtype=torch.float32, device=device), len(grid)
    # The paper weighs both critics; without further notice, equally.
    weight = 0.5 if safety_weight is None else safety_weight
    return torch.full((count,), float(weight), dtype=torch.float32, device=device), count


def paper_values(
    pipeline: Any, states: Tensor, candidates: Tensor, weights: Tensor | None
) -> dict[str, Tensor]:
    """Q^r and Q^c' of candidates (M, A) in normalized states (M, O), the lower twin of each, (M,)."""
    (rewards,) = pipeline.reward_critic(states, candidates, weights, return_dict=False)
    (safeties,) = pipeline.safety_critic(states, candidates, weights, return_dict=False)
    reward_values, safety_values = (twins.amin(dim=0).float() for twins in (rewards, safeties))
    return {"reward_values": reward_values * pipeline.config.reward_unit, "safety_values": safety_values}


def value_policies(
    pipeline: Any,
    states: Tensor,
    weights: Tensor,
    allowance: CostAllowance,
    num_inference_steps: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Rates]:
    """What the policies of N safety weights do in B states, and what the evaluation critic expects of them.

    Args:
        pipeline: A policy with an evaluation critic.
        states: Normalized, (B, O).
        weights: Safety weights, (N,).
        allowance: Of what the rest of the B episodes may cost, the steps.
        num_inference_steps: Denoising steps.
        generator: For schedulers that draw noise in their own steps.

    Returns:
        Actions in [-1, 1] (B, N, A), and what they expect.
    """
    count = len(weights)
    tiled, rows = _tiled(weights, states.shape[0]), repeated(states, count)
    actions = pipeline.noise_model.sample(
        pipeline.scheduler, rows, tiled, num_inference_steps, generator, temperature=0.0
    )
    actions = actions.view(-1, count, actions.shape[1])
    return actions, expected_rates(pipeline, states, actions, weights, _known_steps(pipeline, allowance))


def expected_rates(pipeline: Any, states: Tensor, actions: Tensor, weights: Tensor, steps: Tensor) -> Rates:
    """What the evaluation critic expects over the steps left (B,), of states (B, O), actions (B, N, A) and
    safety weights (N,).
    """
    count = len(weights)
    rows = repeated(states, count), actions.flatten(0, 1)
    tiled = _tiled(weights, states.shape[0]), repeated(steps, count)
    reward, costs = pipeline.evaluation_critic(*rows, *tiled, return_dict=False)
    return reward.view(-1, count), costs.view(-1, count, costs.shape[1])


def student_values(pipeline: Any, states: Tensor, allowance: CostAllowance) -> tuple[Tensor, Rates]:
    """As `value_policies`, by the student."""
    critic, steps = pipeline.evaluation_critic, _known_steps(pipeline, allowance)
    actions, raw = pipeline.student(states, critic.step_features(steps), return_dict=False)
    return actions, critic.within_bounds(*critic.in_units(raw))


def value_policies_fast(
    pipeline: Any, states: Tensor, weights: Tensor, allowance: CostAllowance
) -> tuple[Tensor, Rates, Tensor]:
    """As `value_policies`, by the student where it knows its way about, and by its teacher elsewhere.

    It was distilled on observations in the range of the data, and on no more steps than an episode has.

    Returns:
        As `value_policies`; and which of the states were left to the student, (B,).
    """
    actions, rates = student_values(pipeline, states, allowance)
    low, high = pipeline.evaluation_critic.observed_range
    known = ((states >= low) & (states <= high)).all(dim=1)
    known &= allowance.steps <= pipeline.config.max_episode_steps
    if not bool(known.all()):
        strange = ~known
        rest = CostAllowance(allowance.budget[strange], allowance.steps[strange], allowance.risk)
        taught, expected = value_policies(pipeline, states[strange], weights, rest)
        for values, teachers in zip((actions, *rates), (taught, *expected), strict=True):
            values[strange] = teachers
    return actions, rates, known


def choose_within(
    pipeline: Any, weights: Tensor, rates: Rates, allowance: CostAllowance
) -> tuple[Tensor, dict[str, Tensor]]:
    """Choose among the policies of N safety weights for each of B states by what is expected of them.

    Args:
        pipeline: A policy with an evaluation critic.
        weights: Safety weights, (N,).
        rates: What they expect.
        allowance: What the rest of the B episodes may cost.

    Returns:
        The chosen ones (B,), and what is expected of all, each (B, N); of several costs (B, N, K).
    """
    critic, steps = pipeline.evaluation_critic, allowance.steps.view(-1, 1)
    returns, costs = rates[0] * steps, rates[1] * steps.unsqueeze(2)
    batch, count, kinds = costs.shape
    known = repeated(_known_steps(pipeline, allowance), count)
    # Every step decides anew, and one that errs is enough for an episode: half the risk for each.
    bounds = critic.cost_bound(costs.flatten(0, 1), _tiled(weights, batch), known, allowance.risk / 2)
    bounds = bounds.view(-1, count, kinds) * pipeline.config.cost_margin
    chosen, feasible = extract_safe(returns, bounds, allowance.budget)
    return chosen, {
        "expected_returns": returns,
        "expected_costs": without_one(costs),
        "cost_bounds": without_one(bounds),
        "feasible": feasible,
    }


def _known_steps(pipeline: Any, allowance: CostAllowance) -> Tensor:
    """Steps left, (B,); a caller may go on for longer than any episode of the data."""
    return cast(Tensor, allowance.steps.clamp_max(float(pipeline.config.max_episode_steps)))

FORMAT_VERSION = 2


@dataclass
class SPIPolicyOutput(BaseOutput):
    """Output of [`SPIPolicyPipeline`], for B observations, N candidates each, actions of size A.

    Attributes:
        actions: The chosen actions in the environment's range, shape (B, A), or (A,) for one observation;
            NumPy or torch, as the observation was.
        candidates: All candidate actions in the environment's range, shape (B, N, A).
        safety_weights: The safety weight each candidate was made with, shape (B, N); NaN for a model
            that is not conditioned.
        chosen: Index of the chosen candidate, shape (B,).
        reward_values: With extraction "reward": Q^r of each candidate (the lower twin), in units of reward,
            shape (B, N).
        safety_values: With extraction "reward": Q^c' of each candidate (the lower twin), shape (B, N).
        expected_returns: With extraction "safe": expected return over the steps left, in units of reward, if
            the policy of the candidate's safety weight acts, shape (B, N).
        expected_costs: The same of the cost, shape (B, N); of K > 1 costs (B, N, K).
        cost_bounds: The same plus the margin for `risk`: predicted to be exceeded with half of it, by any of
            the costs; times the policy's `cost_margin`.
        feasible: Whether that, and the bound of every safer policy, fits into the budget, shape (B, N).
        by_student: With `fast`: whether the student has answered, and not its teacher, shape (B,).
    """

    actions: Tensor | np.ndarray
    candidates: Tensor
    safety_weights: Tensor
    chosen: Tensor
    reward_values: Tensor | None = None
    safety_values: Tensor | None = None
    expected_returns: Tensor | None = None
    expected_costs: Tensor | None = None
    cost_bounds: Tensor | None = None
    feasible: Tensor | None = None
    by_student: Tensor | None = None

    def __post_init__(self) -> None:
        """As diffusers' own, which would take as long as choosing among the candidates."""
        for name, value in vars(self).items():
            if value is not None:
                OrderedDict.__setitem__(self, name, value)


class SPIPolicyPipeline(ControlledPolicy, DiffusersMethods, DiffusionPipeline):
    r"""A safe policy: maps observations to actions that keep a cost limit chosen at run time.

    Candidate actions are drawn from the noise model by denoising (Eq. 8), valued, and one is extracted. With
    `extraction="reward"` that is the paper's Eq. 12, by the reward critic. With `extraction="safe"`, the
    default whenever a limit or budget is given, there is one candidate for each safety weight of a grid,
    denoised without noise: each weight stands for a policy of its own, which acts by its most typical action.
    The evaluation critic tells what return and cost each of them expects over the steps left, and what margin
    the cost needs for a `risk`. A policy fits if its cost with the margin, and that of all safer ones, fits
    into the budget. Of those the one with the highest return acts; where none fits, or the budget is spent,
    the safest one.

    Args:
        noise_model ([`MLPNoiseModel`]): Predicts the noise in an action, given the observation.
        reward_critic ([`TwinCritic`]): Q^r.
        safety_critic ([`TwinCritic`]): Q^c'.
        scheduler ([`~diffusers.DDPMScheduler`]): A diffusers scheduler that takes predicted noise.
        normalizer ([`ObservationNormalizer`]): Observation statistics.
        evaluation_critic ([`EvaluationCritic`], *optional*): What return and cost are to come. Without it the
            policy cannot keep a limit.
        student ([`Student`], *optional*): Answers `fast=True` in one pass; `spi distill` trains it.
        task: Name of the task it was trained for, for example "OfflineBallCircle-v0".
        max_episode_steps: Steps of an episode, over which a `cost_limit` is spread.
        gamma: Discount factor of the critics.
        reward_unit: What a 1 of Q^r is worth in the rewards of the data, > 0.
        cost_margin: What the cost of a policy, with the margin for the risk, is multiplied by before it must
            fit into the budget, > 0. `spi certify --tune` finds it in the simulator.
        format_version: Version of this folder format.
    """

    _optional_components = ["evaluation_critic", "student"]  # noqa: RUF012 - diffusers' own convention

    def __init__(
        self,
        noise_model: Any,
        reward_critic: Any,
        safety_critic: Any,
        scheduler: Any,
        normalizer: Any,
        evaluation_critic: Any | None = None,
        student: Any | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        gamma: float = 0.99,
        reward_unit: float = 1.0,
        cost_margin: float = 1.0,
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        settings = {
            "task": task,
            "max_episode_steps": max_episode_steps,
            "gamma": gamma,
            "reward_unit": reward_unit,
            "cost_margin": cost_margin,
            "format_version": format_version,
        }
        self.check_settings(**settings)
        networks = {
            "noise_model": noise_model,
            "reward_critic": reward_critic,
            "safety_critic": safety_critic,
        }
        check_given(**networks, scheduler=scheduler, normalizer=normalizer)
        self._check_origin(noise_model)
        normalizer.check()
        check_finite(**networks)
        for key in ("observation_dim", "action_dim", "use_safety_weight"):
            check_same(key, **networks)
        check_same("observation_dim", noise_model=noise_model, normalizer=normalizer)
        if evaluation_critic is not None:
            self._check_evaluation_critic(noise_model, evaluation_critic, max_episode_steps)
        if student is not None:
            self._check_student(noise_model, evaluation_critic, student)
        self.register_modules(
            **networks,
            scheduler=scheduler,
            normalizer=normalizer,
            evaluation_critic=evaluation_critic,
            student=student,
        )
        self.register_to_config(**settings)
        make_settings_plain(self, *self.components.values())
        for component in (*networks.values(), normalizer, evaluation_critic, student):
            if component is not None:
                component.eval()

    def _check_fast(self, allowance: Any, safety_weight: Any, denoising_steps: Any) -> None:
        if self.student is None:
            raise ValueError(
                "This policy has no student, so it cannot act with fast=True: `spi distill` trains one."
            )
        if allowance is None:
            raise ValueError("fast=True is for a policy under a limit: pass a cost_limit, or a cost_budget.")
        for name, value in (("safety_weight", safety_weight), ("num_inference_steps", denoising_steps)):
            if value is not None:
                raise ValueError(f"{name} has no effect with fast=True: the student answers in one pass.")

    def _check_origin(self, component: Any) -> None:
        check_origin(component)

    @staticmethod
    def _check_evaluation_critic(noise_model: Any, critic: Any, max_episode_steps: int | None) -> None:
        check_finite(evaluation_critic=critic)
        for key in ("observation_dim", "action_dim"):
            check_same(key, noise_model=noise_model, evaluation_critic=critic)
        if not noise_model.config.use_safety_weight:
            raise ValueError("An evaluation critic needs a noise model with a safety weight.")
        if critic.config.max_episode_steps != max_episode_steps:
            raise ValueError(
                f"max_episode_steps is {max_episode_steps}, but the evaluation critic's is "
                f"{critic.config.max_episode_steps}: these do not belong together."
            )

    @staticmethod
    def _check_student(noise_model: Any, critic: Any | None, student: Any) -> None:
        check_finite(student=student)
        if critic is None:
            raise ValueError("A student needs the evaluation critic, whose expectations it has learned.")
        for key in ("observation_dim", "action_dim"):
            check_same(key, noise_model=noise_model, student=student)
        sizes = (student.config.num_weights, student.config.num_costs)
        if sizes != (len(SAFETY_WEIGHT_GRID), len(critic.cost_names)):
            raise ValueError(
                f"The student answers for {sizes[0]} safety weights and {sizes[1]} cost(s), but the policy "
                f"has {len(SAFETY_WEIGHT_GRID)} and {len(critic.cost_names)}: these do not belong together."
            )

    @classmethod
    def check_settings(
        cls,
        task: Any,
        max_episode_steps: Any,
        gamma: Any,
        reward_unit: Any,
        format_version: Any,
        cost_margin: Any = 1.0,
    ) -> None:
        """Raise ValueError if a setting of the pipeline makes no sense."""
        cls.check_format_version(format_version)
        check_text("task", task)
        if max_episode_steps is not None:
            as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        as_number("gamma", gamma, 0, 1, below=True)
        as_number("reward_unit", reward_unit, 1 / LARGEST)
        as_number("cost_margin", cost_margin, 1 / LARGEST)

    @staticmethod
    def check_format_version(format_version: Any) -> None:
        """Raise ValueError if this code cannot read a policy of that format."""
        version = as_number("format_version", format_version, 1, whole=True)
        if version != FORMAT_VERSION:
            advice = (
                "upgrade with `pip install -U spi-diffusers`"
                if version > FORMAT_VERSION
                else "train the policy anew"
            )
            raise ValueError(
                f"This policy has format version {version}, but this code reads version {FORMAT_VERSION}: "
                f"{advice}."
            )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Refused: diffusers' own would publish a repository that only this class can load."""
        raise ImportError(
            "Publishing needs the package: pip install spi-diffusers, and load the policy with its class."
        )

    @torch.no_grad()
    @without_autocast
    def __call__(
        self,
        observation: Tensor | np.ndarray | Sequence[float],
        *,
        extraction: str | None = None,
        cost_limit: float | Sequence[float] | dict[str, Any] | Tensor | np.ndarray | None = None,
        cost_budget: float | Sequence[float] | dict[str, Any] | Tensor | np.ndarray | None = None,
        steps_left: int | Tensor | np.ndarray | None = None,
        risk: float = DEFAULT_RISK,
        safety_weight: float | None = None,
        num_candidates: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | int | None = None,
        fast: bool = False,
        return_dict: bool = True,
    ) -> SPIPolicyOutput | tuple[Tensor | np.ndarray]:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            extraction: "reward" (Eq. 12) or "safe"; by default "safe" if a limit or budget is given.
            cost_limit: Cost an episode may have, in units of cost, >= 0; one number or one per observation.
                Of K > 1 costs (K,), (B, K), or a dict by `cost_names`. For where the cost so far is not
                known: every step is taken for the first of an episode.
            cost_budget: What is left of the limit: limit - cost so far (may be negative once overspent), in
                the same forms. Needs `steps_left`. Keeps the limit most reliably.
            steps_left: Steps left in the episode, >= 1; one number or one per observation.
            risk: Share of the episodes that may exceed the limit, in (0, 1).
            safety_weight: Safety weight in [0, 1] of all candidates instead of the grid (safe) or 0.5
                (reward); only for a conditioned model.
            num_candidates: Candidates per observation with extraction "reward"; 50 by default.
            num_inference_steps: Denoising steps; by default all of the scheduler's training timesteps.
            generator: Source of the noise, or a seed; the same seed gives the same actions. Safe extraction
                uses none, except with a scheduler of another kind that draws noise in its steps.
            fast: With safe extraction, let the student answer: one pass instead of denoising and valuing each
                candidate. Observations outside the range of the data, and more steps left than an episode
                has, are left to the policy itself, as `by_student` says.
            return_dict: Whether to return a [`SPIPolicyOutput`] instead of a tuple.

        Returns:
            [`SPIPolicyOutput`], or a tuple holding the actions only.

        Raises:
            ValueError: For an observation of the wrong size, with NaN or of something else than numbers, an
                unknown extraction, a negative limit, a budget without steps left, a risk outside (0, 1), a
                safety weight or a number of candidates that does not apply, or an argument of the wrong
                type; for a limit, if the policy has no evaluation critic; for `fast`, if it has no student.

        Example:
            ```python
            pipe = SPIPolicyPipeline.from_pretrained("outputs/ballcircle-seed0")
            env = make_env("ballcircle", seed=0)
            observation, info = env.reset()
            limit, cost, steps = 20.0, 0.0, pipe.config.max_episode_steps
            for step in range(steps):
                action = pipe(observation, cost_budget=limit - cost, steps_left=steps - step).actions
                observation, reward, terminated, truncated, info = env.step(action)
                cost += info["cost"]
                if terminated or truncated:
                    break
            ```
        """
        # Not self.device: diffusers searches all components for it, which takes as long as a forward pass.
        observations, single, as_numpy = as_batch(
            observation, self.noise_model.config.observation_dim, self.normalizer.mean.device
        )
        generator = as_generator(generator)
        batch, device = len(observations), observations.device
        extraction, allowance = cost_allowance(
            self.config.max_episode_steps,
            extraction,
            cost_limit,
            cost_budget,
            steps_left,
            risk,
            lambda name, value: per_observation(name, value, batch),
            lambda name, value: per_cost(name, value, self.cost_names, batch),
        )
        if allowance is not None and self.evaluation_critic is None:
            raise ValueError(
                "This policy has no evaluation critic, so it cannot keep a limit: only extraction='reward' "
                "is left. SPI trains one with spi.conditioned=true."
            )
        if allowance is not None:
            budget = torch.as_tensor(allowance.budget, device=device).expand(batch, -1)
            steps = torch.as_tensor(allowance.steps, device=device).expand(batch)
            allowance = CostAllowance(budget, steps, allowance.risk)
        conditioned = self.noise_model.config.use_safety_weight
        weights, count = candidate_weights(conditioned, extraction, safety_weight, num_candidates, device)

        states, denoising_steps = self.normalizer(observations), as_plain(num_inference_steps)
        if fast:
            self._check_fast(allowance, safety_weight, denoising_steps)
        values: dict[str, Tensor]
        if allowance is None:
            states = repeated(states, count)
            tiled = None if weights is None else weights.expand(batch, count).flatten()
            candidates = self.noise_model.sample(self.scheduler, states, tiled, denoising_steps, generator)
            values = paper_values(self, states, candidates, tiled)
            values = {name: value.view(batch, count) for name, value in values.items()}
            chosen = extract_reward(values["reward_values"])
        else:
            assert weights is not None  # an evaluation critic needs a conditioned policy
            known = None
            if fast:
                candidates, rates, known = value_policies_fast(self, states, weights, allowance)
            else:
                candidates, rates = value_policies(
                    self, states, weights, allowance, denoising_steps, generator
                )
            chosen, values = choose_within(self, weights, rates, allowance)
            values |= {} if known is None else {"by_student": known}

        candidates = self.noise_model.to_environment_range(candidates).view(batch, count, -1)
        picked = candidates[torch.arange(batch, device=device), chosen]
        if not math.isfinite(float(picked.sum())):
            raise ValueError("The noise model gave actions that are not finite.")
        picked = picked[0] if single else picked
        actions = picked.cpu().numpy() if as_numpy else picked
        if not return_dict:
            return (actions,)
        if weights is None:
            weights = torch.full((count,), torch.nan, dtype=torch.float32, device=device)
        return SPIPolicyOutput(
            actions=actions,
            candidates=candidates,
            safety_weights=weights.expand(batch, count),
            chosen=chosen,
            **values,
        )
