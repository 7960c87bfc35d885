"""Acting under a cost limit: counts steps, spends the budget, learns from episodes that are over.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spi_diffusers.pipelines.adaptation import AdaptiveScale
from spi_diffusers.pipelines.allowance import DEFAULT_RISK, check_risk
from spi_diffusers.pipelines.ledger import Ledger, as_array
from spi_diffusers.pipelines.values import as_floats, as_number, check_batch, shown, to_numpy, without_one


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
