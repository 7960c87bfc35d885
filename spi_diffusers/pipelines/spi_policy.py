"""The SPI policy as a diffusers pipeline: draw candidate actions, value them, extract one.

This very file is shipped inside a policy's Hub repository, as `pipeline.py`: it needs only torch, numpy and
diffusers. It is one file because diffusers puts the shipped code of all local policies into one flat package
and reloads only the pipeline's own file: a second policy would act with the first one's neighbours. What the
installed package adds, checked loading and publishing, is in `hub_policy.py`.
"""

import hashlib
import json
import logging
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

FORMAT_VERSION = 1
INDEX_FILE = "model_index.json"
#: The entry of the index that holds the SHA-256 of every file of the policy, and of the rest of the index.
#: diffusers ignores it, but downloads it with the index.
CHECKSUMS = "_sha256"
SAFETY_WEIGHT_GRID = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
NUM_CANDIDATES = 50
MAX_CANDIDATES = 100_000
EXTRACTIONS = ("reward", "safe")
SELECTIONS = ("candidate", "weight")
logger = logging.getLogger(__name__)

#: How much faster than evenly a budget may be spent when the limit is known too. Without a bound, what a
#: careful policy has saved would be thrown away in the last steps, for little reward.
PACE_HEADROOM = 1.5
#: Of any setting or argument: beyond it, whole numbers and float32 give out.
LARGEST = 1e18


@dataclass
class SPIPolicyOutput(BaseOutput):
    """Output of [`SPIPolicyPipeline`], for B observations, N candidates each, actions of size A.

    Attributes:
        actions: The chosen actions in the environment's range, shape (B, A), or (A,) for one observation;
            NumPy or torch, as the observation was.
        candidates: All candidate actions in the environment's range, shape (B, N, A).
        safety_weights: The safety weight each candidate was drawn with, shape (B, N); NaN for a model
            that is not conditioned.
        reward_values: Reward critic Q^r of each candidate (the lower twin), shape (B, N).
        safety_values: Safety critic Q^c' of each candidate (the lower twin), shape (B, N).
        cost_rates: Predicted cost per step from each candidate on, shape (B, N).
        feasible: Whether a candidate's predicted cost is within what is allowed, shape (B, N); all True
            where no limit applies.
        chosen: Index of the chosen candidate, shape (B,).
    """

    actions: Tensor | np.ndarray
    candidates: Tensor
    safety_weights: Tensor
    reward_values: Tensor
    safety_values: Tensor
    cost_rates: Tensor
    feasible: Tensor
    chosen: Tensor


def extract_reward(reward_values: Tensor) -> Tensor:
    """Eq. 12: the candidate with the highest Q^r. (B, N) -> (B,)."""
    return reward_values.argmax(dim=1)


def extract_safe(
    reward_values: Tensor, safety_values: Tensor, feasible: Tensor, num_groups: int | None = None
) -> Tensor:
    """The feasible candidate with the highest Q^r; where none is feasible, the one with the highest Q^c'.

    With groups, the group with the highest mean Q^r among those that are feasible, and its first candidate.

    Args:
        reward_values: Shape (B, N).
        safety_values: Shape (B, N).
        feasible: Shape (B, N), bool; with groups, the same for all candidates of a group.
        num_groups: Number of groups of equally many candidates side by side.

    Returns:
        Index of the chosen candidate, shape (B,).
    """
    if num_groups is None:
        best = torch.where(feasible, reward_values, -torch.inf).argmax(dim=1)
    else:
        size = reward_values.shape[1] // num_groups
        means = reward_values.unflatten(1, (num_groups, size)).mean(dim=2)
        best = torch.where(feasible[:, ::size], means, -torch.inf).argmax(dim=1) * size
    return torch.where(feasible.any(dim=1), best, safety_values.argmax(dim=1))


def group_means(values: Tensor, num_groups: int | None) -> Tensor:
    """Every candidate's mean over its group, (B, N) -> (B, N); without groups, the values themselves."""
    if num_groups is None:
        return values
    groups = values.unflatten(1, (num_groups, -1))
    return groups.mean(dim=2, keepdim=True).expand_as(groups).flatten(1)


@dataclass(frozen=True)
class CostAllowance:
    """What a step may cost.

    Attributes:
        rate: Cost per step to hold the critic's predictions to, shape (B,).
        recovery: Cost that even the safest way on from a candidate may still have, shape (B,); None where
            the running cost is not fed back.
    """

    rate: Tensor
    recovery: Tensor | None


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


def shown(value: Any) -> str:
    """How messages show a value: on one line, at most 200 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


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
    number = value
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        number = value.item()
    is_number = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
    if not is_number or not low <= number <= high or (below and number == high):  # NaN is refused, too
        limits = f"in [{low:g}, {high:g}{')' if below else ']'}" if high < LARGEST else f"of at least {low:g}"
        kind = "whole" if whole else "finite"
        raise ValueError(f"{name} must be a {kind} number {limits}, got {shown(value)}.")
    return number


def as_numbers(name: str, value: Any, kinds: str = "iuf") -> Tensor:
    """Numbers of any library as float32.

    Args:
        name: What messages call them.
        value: A number, a torch tensor, or what NumPy makes an array of.
        kinds: NumPy's letters of the data types that are taken; "b" for true and false.

    Returns:
        A tensor of the same shape; float32, where the tensor was.

    Raises:
        ValueError: It holds something else than numbers: text, complex numbers, masked ones, lists of
            several lengths, a dict.
    """
    if isinstance(value, Tensor):
        no_bool = value.dtype == torch.bool and "b" not in kinds
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or no_bool:
            kind = f"{value.dtype}, {value.layout}"
            raise ValueError(f"{name} must be a number or a dense array of numbers, got a tensor of {kind}.")
        return value.detach().to(torch.float32)
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
            return torch.from_numpy(array.astype(np.float32, order="C"))
    except Exception as error:  # whatever NumPy and other libraries raise about their types
        raise ValueError(
            f"{name} must be a number or an array of numbers, in rows of one length, got {shown(value)}."
        ) from error


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
    tensor = as_numbers("observation", observation, kinds="biuf").to(device)
    if tensor.ndim not in (1, 2) or tensor.shape[-1] != size or tensor.numel() == 0:
        raise ValueError(
            f"observation has shape {tuple(tensor.shape)}; this policy takes ({size},) or (batch, {size})."
        )
    if not bool(torch.isfinite(tensor).all()):
        position = (~torch.isfinite(tensor)).nonzero()[0].tolist()
        raise ValueError(f"observation is NaN or infinite at index {position}.")
    single = tensor.ndim == 1
    return (tensor.unsqueeze(0) if single else tensor), single, not isinstance(observation, Tensor)


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


def check_text(name: str, value: Any) -> None:
    """Raise ValueError if a setting is neither text nor None."""
    if not (value is None or isinstance(value, str)):
        raise ValueError(f"{name} must be text or None, got {shown(value)}.")


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
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sums[name]:
                    damaged.append(name)
    return damaged


class DiffusersMethods:
    """What diffusers offers to pipelines of many GB, for one of a few MB; mixed into a pipeline."""

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


class SPIPolicyPipeline(DiffusersMethods, DiffusionPipeline):
    r"""A safe policy: maps observations to actions that keep a cost limit chosen at run time.

    Candidate actions are drawn from the noise model by denoising (Eq. 8); critics value them; one is
    extracted. With `extraction="reward"` that is the paper's Eq. 12. With `extraction="safe"`, the default
    whenever a limit or budget is given, candidates come from a grid of safety weights, and a candidate is
    feasible if its predicted cost rate is at most the allowed one: limit / episode length, or, with the
    running cost fed back, what is left of the budget but for a reserve / steps left (with the limit as well:
    at most 1.5 times limit / episode length). A fed-back budget has a second condition: the predicted cost of
    the safest way on (safety weight 1) must fit into what is left but for the reserve. Of the feasible ones
    the highest Q^r is taken; where there is none, the highest Q^c'.

    Args:
        noise_model ([`MLPNoiseModel`]): Predicts the noise in an action, given the observation.
        reward_critic ([`TwinCritic`]): Q^r.
        safety_critic ([`TwinCritic`]): Q^c', and the predicted cost Q^c as its second head.
        scheduler ([`~diffusers.DDPMScheduler`]): A diffusers scheduler that takes predicted noise.
        normalizer ([`ObservationNormalizer`]): Observation statistics.
        calibration ([`CostCalibration`], *optional*): What cost results from what the critic allows; used for
            a `cost_limit` alone. Where the running cost is fed back, the feedback corrects the critic.
        task: Name of the task it was trained for, for example "OfflineBallCircle-v0".
        max_episode_steps: Steps of an episode, over which a `cost_limit` is spread.
        gamma: Discount factor of the critics.
        budget_reserve: Part of a fed-back cost budget, in units of cost, that is kept back; under a limit
            at or below it the policy always does the safest thing it knows.
        reserve_decay: At a step the reserve is budget_reserve * (steps left / max_episode_steps) **
            reserve_decay. 0 keeps all of it to the end, for where costs come many in a row; with 0.5 it
            shrinks as the spread of single costs that are still to come.
        selection: What safe extraction compares: "candidate", single actions, of which it takes the one with
            the highest Q^r; or "weight", the policies of the safety weights, valued by the mean over their
            candidates, of which it plays one. The latter does not seek out the critics' errors; it was better
            on Walker2d and worse on BallCircle and HalfCheetah.
        format_version: Version of this folder format.
    """

    _optional_components = ["calibration"]  # noqa: RUF012 - diffusers' own convention

    def __init__(
        self,
        noise_model: Any,
        reward_critic: Any,
        safety_critic: Any,
        scheduler: Any,
        normalizer: Any,
        calibration: Any | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        gamma: float = 0.99,
        budget_reserve: float = 3.0,
        reserve_decay: float = 0.0,
        selection: str = "candidate",
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        settings = {
            "task": task,
            "max_episode_steps": max_episode_steps,
            "gamma": gamma,
            "budget_reserve": budget_reserve,
            "reserve_decay": reserve_decay,
            "selection": selection,
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
        if calibration is not None:
            calibration.check()
        self.register_modules(**networks, scheduler=scheduler, normalizer=normalizer, calibration=calibration)
        self.register_to_config(**settings)
        for component in (*networks.values(), normalizer):
            component.eval()

    def _check_origin(self, component: Any) -> None:
        """Raise ValueError if the policy folder that a component was just loaded from is damaged."""
        folder = os.path.dirname(str(component.config.get("_name_or_path", "")))
        path = os.path.join(folder, INDEX_FILE)
        if folder and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                damaged = damaged_files(folder, json.load(file))
            if damaged:
                place = os.path.join(folder, damaged[0])
                raise ValueError(
                    f"{place} is damaged: its checksum is not the one in {INDEX_FILE}. Get it anew; from the "
                    "Hub with force_download=True."
                )

    @classmethod
    def check_settings(
        cls,
        task: Any,
        max_episode_steps: Any,
        gamma: Any,
        budget_reserve: Any,
        reserve_decay: Any,
        selection: Any,
        format_version: Any,
    ) -> None:
        """Raise ValueError if a setting of the pipeline makes no sense."""
        cls.check_format_version(format_version)
        check_text("task", task)
        if max_episode_steps is not None:
            as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        as_number("gamma", gamma, 0, 1, below=True)
        as_number("budget_reserve", budget_reserve, 0)
        if as_number("reserve_decay", reserve_decay, 0) and max_episode_steps is None:
            raise ValueError("reserve_decay needs max_episode_steps.")
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {shown(selection)}.")

    @staticmethod
    def check_format_version(format_version: Any) -> None:
        """Raise ValueError if this code cannot read a policy of that format."""
        if as_number("format_version", format_version, 1, whole=True) > FORMAT_VERSION:
            raise ValueError(
                f"This policy has format version {format_version}, but this code reads versions up to "
                f"{FORMAT_VERSION}: upgrade with `pip install -U spi-diffusers`."
            )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Refused: diffusers' own would publish a repository that only this class can load."""
        raise ImportError(
            "Publishing needs the package: pip install spi-diffusers, and load the policy with its class."
        )

    @torch.no_grad()
    def __call__(
        self,
        observation: Tensor | np.ndarray | Sequence[float],
        *,
        extraction: str | None = None,
        cost_limit: float | Tensor | np.ndarray | None = None,
        cost_budget: float | Tensor | np.ndarray | None = None,
        steps_left: int | Tensor | np.ndarray | None = None,
        safety_weight: float | None = None,
        num_candidates: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | int | None = None,
        return_dict: bool = True,
    ) -> SPIPolicyOutput | tuple[Tensor | np.ndarray]:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            extraction: "reward" (Eq. 12) or "safe"; by default "safe" if a limit or budget is given.
            cost_limit: Cost an episode may have, in units of cost, >= 0; one number or one per observation.
                Alone it is spread evenly over `max_episode_steps`: use that if the running cost is not
                observed. With `cost_budget` it bounds how fast the budget is spent.
            cost_budget: What is left of the limit: limit - cost so far (may be negative once overspent);
                one number or one per observation. Needs `steps_left`. Keeps the limit most reliably.
            steps_left: Steps left in the episode, >= 1; one number or one per observation.
            safety_weight: Safety weight in [0, 1] of all candidates instead of the grid (safe) or 0.5
                (reward); only for a conditioned model.
            num_candidates: Candidates per observation; 50 by default. With a grid of safety weights it is
                rounded down to a multiple of the grid's size (at least one each).
            num_inference_steps: Denoising steps; by default all of the scheduler's training timesteps.
            generator: Source of the noise, or a seed; the same seed gives the same actions.
            return_dict: Whether to return a [`SPIPolicyOutput`] instead of a tuple.

        Returns:
            [`SPIPolicyOutput`], or a tuple holding the actions only.

        Raises:
            ValueError: For an observation of the wrong size, with NaN or of something else than numbers, an
                unknown extraction, a negative limit, a budget without steps left, a safety weight that does
                not apply, or an argument of the wrong type.

        Example:
            ```python
            pipe = SPIPolicyPipeline.from_pretrained("outputs/ballcircle-seed0")
            env = make_env("ballcircle", seed=0)
            observation, info = env.reset()
            limit, cost, steps = 20.0, 0.0, pipe.config.max_episode_steps
            for step in range(steps):
                budget = {"cost_budget": limit - cost, "steps_left": steps - step}
                action = pipe(observation, cost_limit=limit, **budget).actions
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
        extraction, allowance = self._allowance(
            extraction, cost_limit, cost_budget, steps_left, batch, device
        )
        weights, count = self._candidate_weights(extraction, safety_weight, num_candidates, device)

        states = self.normalizer(observations).repeat_interleave(count, dim=0)
        tiled = None if weights is None else weights.repeat(batch)
        candidates = self.noise_model.sample(self.scheduler, states, tiled, num_inference_steps, generator)
        (reward_twins,) = self.reward_critic(states, candidates, tiled, return_dict=False)
        guarded = allowance is not None and allowance.recovery is not None
        safety_values, cost_values, recovery_costs = self._safety(states, candidates, tiled, guarded)
        reward_values, safety_values, cost_values, recovery_costs = (
            values.view(batch, count).float()
            for values in (reward_twins[..., 0].amin(dim=0), safety_values, cost_values, recovery_costs)
        )
        cost_rates = cost_values * (1.0 - self.config.gamma)

        if allowance is None:
            chosen = extract_reward(reward_values)
            feasible = torch.ones_like(reward_values, dtype=torch.bool)
        else:
            groups = self.num_groups if safety_weight is None else None
            feasible = group_means(cost_rates, groups) <= allowance.rate.unsqueeze(1)
            if allowance.recovery is not None:
                recoverable = group_means(recovery_costs, groups) <= allowance.recovery.unsqueeze(1)
                feasible = feasible & recoverable
            chosen = extract_safe(reward_values, safety_values, feasible, groups)

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
            reward_values=reward_values,
            safety_values=safety_values,
            cost_rates=cost_rates,
            feasible=feasible,
            chosen=chosen,
        )

    @property
    def num_groups(self) -> int | None:
        """Number of groups that safe extraction compares; None where it compares candidates."""
        grouped = self.config.selection == "weight" and self.noise_model.config.use_safety_weight
        return len(SAFETY_WEIGHT_GRID) if grouped else None

    def _allowance(
        self,
        extraction: str | None,
        cost_limit: Any,
        cost_budget: Any,
        steps_left: Any,
        batch: int,
        device: torch.device,
    ) -> tuple[str, CostAllowance | None]:
        """Which extraction applies, and for the safe one what a step may cost."""
        if extraction is None:
            extraction = "reward" if cost_limit is None and cost_budget is None else "safe"
        if extraction not in EXTRACTIONS:
            raise ValueError(f"extraction must be one of {EXTRACTIONS}, got {shown(extraction)}.")
        if (cost_budget is None) != (steps_left is None):
            raise ValueError("cost_budget and steps_left (in the episode) must be given together.")
        even_rate = None
        if cost_limit is not None:
            limit = _per_observation("cost_limit", cost_limit, batch, device)
            if bool((limit < 0).any()):
                raise ValueError(f"cost_limit must not be negative, got {shown(cost_limit)}.")
            if self.config.max_episode_steps is None:
                raise ValueError(
                    "This policy does not know its task's episode length: pass cost_budget and steps_left "
                    "instead of cost_limit."
                )
            even_rate = limit / self.config.max_episode_steps
        if extraction == "reward":
            return extraction, None
        if cost_budget is None:
            if even_rate is None:
                raise ValueError("extraction='safe' needs cost_limit, or cost_budget with steps_left.")
            calibrated = even_rate if self.calibration is None else self.calibration(even_rate)
            return extraction, CostAllowance(calibrated, None)
        budget = _per_observation("cost_budget", cost_budget, batch, device)
        steps = _per_observation("steps_left", steps_left, batch, device)
        if bool((steps < 1).any()):
            raise ValueError(f"steps_left must be at least 1, got {shown(steps_left)}.")
        reserve = self.config.budget_reserve
        if self.config.reserve_decay:
            share = (steps / self.config.max_episode_steps).clamp_max(1.0)
            reserve = reserve * share**self.config.reserve_decay
        left = (budget - reserve).clamp_min(0.0)
        rate = left / steps
        if even_rate is not None:
            rate = torch.minimum(rate, PACE_HEADROOM * even_rate)
        return extraction, CostAllowance(rate, left)

    def _candidate_weights(
        self,
        extraction: str,
        safety_weight: float | None,
        num_candidates: int | None,
        device: torch.device,
    ) -> tuple[Tensor | None, int]:
        """The safety weight of each candidate (N,), None for an unconditioned model; and N."""
        count = NUM_CANDIDATES
        if num_candidates is not None:
            count = as_number("num_candidates", num_candidates, 1, MAX_CANDIDATES, whole=True)
        if not self.noise_model.config.use_safety_weight:
            if safety_weight is not None:
                raise ValueError("This policy was trained without a safety weight; do not pass one.")
            return None, count
        if safety_weight is not None:
            safety_weight = as_number("safety_weight", safety_weight, 0, 1)
        if extraction == "safe" and safety_weight is None:
            grid = torch.tensor(SAFETY_WEIGHT_GRID, dtype=torch.float32, device=device)
            per_weight = max(1, count // len(grid))
            return grid.repeat_interleave(per_weight), per_weight * len(grid)
        # The paper weighs both critics; without further notice, equally.
        weight = 0.5 if safety_weight is None else safety_weight
        return torch.full((count,), float(weight), dtype=torch.float32, device=device), count

    def _safety(
        self, states: Tensor, candidates: Tensor, weights: Tensor | None, guarded: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q^c', predicted cost Q^c, and with `guarded` Q^c of the safest way on (else Q^c), each (M,)."""
        count = len(states)
        if guarded and weights is not None:  # one pass for both, as its weights are read only once
            states, candidates = torch.cat([states, states]), torch.cat([candidates, candidates])
            weights = torch.cat([weights, torch.ones_like(weights)])
        (heads,) = self.safety_critic(states, candidates, weights, return_dict=False)
        safety = heads[..., 0].amin(dim=0)
        if heads.shape[-1] > 1:
            cost = heads[..., 1].mean(dim=0)
        else:
            # Without termination, and for costs in [0, 1], Q^c = 1 / (1 - gamma) - Q^c' exactly.
            cost = 1.0 / (1.0 - self.config.gamma) - safety
        return safety[:count], cost[:count], cost[-count:]


def _per_observation(name: str, value: Any, batch: int, device: torch.device) -> Tensor:
    """A number, or one per observation, as float32 (B,)."""
    tensor = as_numbers(name, value).to(device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) not in (1, batch)):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; pass one number or one per observation ({batch},)."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is NaN or infinite: {shown(value)}.")
    return tensor.expand(batch)
