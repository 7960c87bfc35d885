"""Acting with a policy that is told a return and a cost to go, and remembers its last steps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.pipelines.checks import as_batch, without_autocast
from spi_diffusers.pipelines.values import as_number, shown


class TargetController:
    """Keeps the history of an episode for CDT, in one environment or in N; `pipe.controller` makes it.

    It begins with the target return and the cost limit, and takes off what each step earned and cost.
    What is not reported is taken to be spent evenly: as much in each step of an episode.

    Args:
        pipeline: A baseline's policy whose actor is a `DecisionTransformer`.
        cost_limit: Cost that an episode may have, >= 0; a number, or one for each environment.
        num_envs: Number N of environments.
        target_return: Return to aim at, likewise; by default the highest of the data's episodes that kept the
            limit, where none did that of the cheapest.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self, pipeline: Any, cost_limit: Any, *, num_envs: int = 1, target_return: Any = None
    ) -> None:
        self.pipeline, self.num_envs = pipeline, as_number("num_envs", num_envs, 1, whole=True)
        self.normalizer = pipeline.normalizer
        self._device, self._config = self.normalizer.mean.device, pipeline.actor.config
        self.cost_limit = self._each("cost_limit", cost_limit)
        if bool((self.cost_limit < 0).any()):
            raise ValueError(f"cost_limit must be finite and not negative; got {shown(cost_limit)}.")
        self.target_return = (
            pipeline.actor.target_return(self.cost_limit)
            if target_return is None
            else self._each("target_return", target_return)
        )
        config, shape = self._config, (self.num_envs, self._config.context)
        self._observation = torch.zeros(*shape, config.observation_dim, device=self._device)
        self._action = torch.zeros(*shape, config.action_dim, device=self._device)
        self._to_go = torch.zeros(2, *shape, device=self._device)
        self._step = torch.zeros(shape, dtype=torch.int64, device=self._device)
        # Of each environment: what is left of return and cost, steps done, and whether it acts or waits.
        self._left = torch.stack([self.target_return, self.cost_limit])
        self._steps = torch.zeros(self.num_envs, dtype=torch.int64, device=self._device)
        self._ended = torch.ones(self.num_envs, dtype=torch.bool, device=self._device)
        self._acted = False

    def reset(self, mask: Any = None) -> None:
        """Begin an episode, in all environments or in those of a mask, bool (N,)."""
        chosen = self._each("mask", True if mask is None else mask).bool()
        self._left = torch.where(chosen, torch.stack([self.target_return, self.cost_limit]), self._left)
        self._steps.masked_fill_(chosen, 0)
        self._ended &= ~chosen
        self._acted = False

    @without_autocast
    def act(self, observation: Any) -> Any:
        """Choose actions.

        Args:
            observation: (O,) for one environment, or (N, O); not normalized.

        Returns:
            Actions in the environment's range, (A,) or (N, A); NumPy or torch, as the observation was. That
            of an environment that has ended means nothing.

        Raises:
            RuntimeError: `reset` was not called, or `observe` after the last action, or all have ended.
            ValueError: An observation of another shape or number, or with NaN.
        """
        if self._acted or bool(self._ended.all()):
            raise RuntimeError("Call reset before an episode, and observe after each action.")
        states, single, as_numpy = as_batch(observation, self._config.observation_dim, self._device)
        if len(states) != self.num_envs:
            raise ValueError(
                f"observation has shape {tuple(states.shape)}, but the controller has {self.num_envs} "
                "environment(s): pass one row for each, or make it with num_envs=..."
            )
        window, rows = self._config.context, torch.arange(self.num_envs, device=self._device)
        # The present step stands behind those before. Where there is no room, the oldest step goes.
        full = self._steps >= window
        for history in (self._observation, self._action, *self._to_go, self._step):
            history[full] = history[full].roll(-1, dims=1)
        self._place = (rows, self._steps.clamp_max(window - 1))
        self._observation[self._place] = self.normalizer(states)
        self._step[self._place] = self._steps
        for history, left in zip(self._to_go, self._left, strict=True):
            history[self._place] = left.float()
        # What stands behind the present step is of an earlier episode: it looks at nothing that follows it.
        actions = self.pipeline.actor.act(self._observation, self._action, *self._to_go, self._step)
        actions = actions[self._place]
        self._action[self._place] = actions
        self._acted = True
        actions = self.pipeline.to_environment_range(actions)
        actions = actions[0] if single else actions
        return actions.cpu().numpy() if as_numpy else actions

    def observe(self, reward: Any = None, cost: Any = None, ended: Any = False) -> None:
        """Take note of a step.

        Args:
            reward: What it earned, a number or (N,); None: it was not reported.
            cost: What it cost, likewise.
            ended: Whether it ended the episode, a bool or (N,).

        Raises:
            RuntimeError: `act` was not called since the last step.
            ValueError: A number is not finite or of another shape.
        """
        if not self._acted:
            raise RuntimeError("observe counts the step that follows act: call act first.")
        evenly = torch.stack([self.target_return, self.cost_limit]) / self._config.max_episode_steps
        reported = [("reward", reward), ("cost", cost)]
        spent = [
            even if value is None else self._each(name, value)
            for even, (name, value) in zip(evenly, reported, strict=True)
        ]
        ended = self._each("ended", ended).bool()
        self._left = self._left - torch.stack(spent)
        self._steps += 1
        self._ended |= ended
        self._acted = False

    def _each(self, name: str, value: Any) -> Tensor:
        """A finite number for each environment, from one or (N,), float64."""
        numbers = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
        if numbers.shape not in ((), (self.num_envs,)) or not bool(numbers.double().isfinite().all()):
            many = "" if self.num_envs == 1 else f", or one for each of {self.num_envs} environments"
            raise ValueError(f"{name} must be a finite number{many}; got {shown(value)}.")
        return numbers.to(self._device, torch.float64).expand(self.num_envs)
