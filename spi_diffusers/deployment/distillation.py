"""Distillation: a student that answers in one pass what a policy denoises and values step by step."""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from spi_diffusers.config.validation import Count, Whole, settings
from spi_diffusers.data.streaming import Dataset, sample_episodes
from spi_diffusers.evaluation.assess import check_fit, find_data
from spi_diffusers.files import PolicyError, find_policy_folder
from spi_diffusers.locks import held
from spi_diffusers.models import Student
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.allowance import DEFAULT_RISK, CostAllowance
from spi_diffusers.pipelines.extraction import (
    SAFETY_WEIGHT_GRID,
    choose_within,
    expected_rates,
    policy_action,
)
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.pipelines.saving import add_component, in_half_precision
from spi_diffusers.progress import progress_bar
from spi_diffusers.training.evaluation_stage import rates_loss

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

UPDATES = 15_000
HIDDEN_DIMS = (192, 192, 192)
BATCH_SIZE, LEARNING_RATE = 256, 1e-3
#: The teacher is asked about so many observations at most, each with so many numbers of steps left.
MAX_STATES, STEPS_EACH = 100_000, 2
#: Share of them that shows how well the student has learned, and does not teach it.
HELD_OUT = 0.05
#: What an action's error counts beside one of the reward and one of the cost, in units of the data: it is
#: the action that is executed.
ACTION_SHARE = 10.0
#: Observations that the teacher is asked about at once.
_PART = 1024
_MAX_TRANSITIONS = 200_000


@settings(frozen=True)
class DistillationSpec:
    """How a student is trained; `distill` explains the fields. `ConfigError`: a value is out of its range."""

    updates: Count = UPDATES
    seed: Whole = 0


@dataclass(frozen=True)
class Distillation:
    """How well a student has learned, on observations that it was not taught.

    Attributes:
        states: Observations that it was taught.
        held_out: Observations that it was not taught.
        same_choice: Share of these, at budgets and risks of all sizes, in which it chooses the same safety
            weight as its teacher.
        action_error: Root of the mean squared difference of their actions, as a share of half the range.
    """

    states: int
    held_out: int
    same_choice: float
    action_error: float


def distill(
    policy: str | os.PathLike[str],
    dataset: Any = None,
    *,
    updates: int = UPDATES,
    seed: int = 0,
    progress: bool = True,
) -> Distillation:
    """Train a student of a policy, and save it in the policy's folder: `fast=True` asks it then.

    It learns from its teacher's answers to the data's observations: the action of every safety weight, and
    the return and cost that the evaluation critic expects of it.

    Examples:
        >>> distill("outputs/ballcircle-seed0")
        >>> pipe = SPIPolicyPipeline.from_pretrained("outputs/ballcircle-seed0")
        >>> controller = pipe.controller(cost_limit=20, fast=True)

    Args:
        policy: Folder of an SPI policy with an evaluation critic, or of its run.
        dataset: Data whose observations are taken: loaded, or what `load_transitions` takes. None takes what
            the policy was trained on.
        updates: Number of updates.
        seed: Decides weights and all randomness.
        progress: Show a progress bar.

    Returns:
        How well it has learned.

    Raises:
        ValueError: An argument is out of its range, the policy has no evaluation critic, or the data does not
            fit.
        DatasetError: The data cannot be loaded.
        FileNotFoundError: There is no such policy.
        FolderInUseError: Another run works in the policy's folder.
        OSError: The policy cannot be written; it is then as it was.
    """
    spec = DistillationSpec(updates=updates, seed=seed)
    folder = find_policy_folder(policy)
    with held(folder, "distillation"):
        pipeline: Any = load_pipeline(folder)
        if getattr(pipeline, "evaluation_critic", None) is None:
            raise PolicyError(
                f"{folder}: a {type(pipeline).__name__} without an evaluation critic takes no limit at run "
                "time, and a student learns to keep one. SPI trains a critic with spi.conditioned=true"
            )
        data = find_data(pipeline, dataset)
        check_fit(pipeline, data)
        student, result = train_student(pipeline, data, spec, progress=progress)
        add_component(folder, "student", student)
    return result


@own_numerics()
def train_student(
    pipeline: "SPIPolicyPipeline", dataset: Dataset, spec: DistillationSpec, *, progress: bool
) -> tuple[Student, Distillation]:
    """Train a student of a policy on the data's observations."""
    critic: Any = pipeline.evaluation_critic
    generator = torch.Generator().manual_seed(spec.seed)
    bar = progress_bar(total=spec.updates, desc="distilling", unit=" updates", disable=not progress)
    bar.set_postfix_str("the teacher's answers")
    # More answers than the updates can take in would take longer than to learn from them.
    most = min(MAX_STATES, spec.updates * BATCH_SIZE // STEPS_EACH)
    answers = _Answers(pipeline, dataset, most, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        student = Student(
            observation_dim=dataset.observation_dim,
            action_dim=dataset.action_dim,
            num_weights=len(SAFETY_WEIGHT_GRID),
            num_costs=len(pipeline.cost_names),
            hidden_dims=list(HIDDEN_DIMS),
        )
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.updates)
    for update in range(spec.updates):
        loss = answers.loss(student, critic, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
        if update % 500 == 0 or update + 1 == spec.updates:
            bar.set_postfix_str(f"loss={loss.item():.3g}")
            if not math.isfinite(loss.item()):
                raise ValueError(f"The student's loss is {loss.item()} after {update + 1} updates.")
    bar.close()
    with torch.no_grad():
        for weights in student.parameters():  # stored so, at half the size
            weights.copy_(in_half_precision(weights))
    return student.eval(), answers.judge(pipeline, student.eval(), generator)


class _Answers:
    """What the teacher does and expects in observations of the data, with some numbers of steps left.

    M observations, S numbers of steps for each, N safety weights, K costs. The last ones are held out.
    """

    def __init__(self, pipeline: Any, dataset: Dataset, most: int, generator: torch.Generator) -> None:
        rows = sample_episodes(dataset, _MAX_TRANSITIONS, seed=0).transitions.observation
        rows = rows[torch.randperm(len(rows), generator=generator)[:most]]
        longest = pipeline.config.max_episode_steps
        self.states = pipeline.normalizer(rows)
        self.steps = torch.randint(1, longest + 1, (len(rows), STEPS_EACH), generator=generator).float()
        self.taught = max(1, len(rows) - round(HELD_OUT * len(rows)))
        asked = [
            _ask(pipeline, *part)
            for part in zip(self.states.split(_PART), self.steps.split(_PART), strict=True)
        ]
        self.actions, self.reward, self.costs = map(torch.cat, zip(*asked, strict=True))

    def loss(self, student: Student, critic: Any, generator: torch.Generator) -> Tensor:
        """Squared errors of actions, and of rates in units of the critic, whose own loss they are."""
        rows = torch.randint(self.taught, (BATCH_SIZE,), generator=generator)
        which = torch.randint(STEPS_EACH, (BATCH_SIZE,), generator=generator)
        steps = self.steps[rows, which]
        actions, rates = student.unbounded(self.states[rows], critic.step_features(steps))
        loss = ACTION_SHARE * functional.mse_loss(actions, self.actions[rows])
        targets = self.reward[rows, which], self.costs[rows, which]
        return loss + rates_loss(critic, critic.in_units(rates), targets, steps.unsqueeze(1))

    @torch.no_grad()
    def judge(self, pipeline: Any, student: Student, generator: torch.Generator) -> Distillation:
        """Compare what the student answers to held-out observations with what its teacher does."""
        critic, weights = pipeline.evaluation_critic, torch.tensor(SAFETY_WEIGHT_GRID)
        held_out = slice(self.taught, None) if self.taught < len(self.states) else slice(None)
        states, steps = self.states[held_out], self.steps[held_out, 0]
        own = student(states, critic.step_features(steps), return_dict=False)
        answers = (
            (self.actions[held_out], (self.reward[held_out, 0], self.costs[held_out, 0])),
            (own[0], critic.within_bounds(*critic.in_units(own[1]))),
        )
        # From where nothing fits to where everything does, whatever the costs are.
        nothing = CostAllowance(torch.zeros(len(states), len(pipeline.cost_names)), steps, DEFAULT_RISK)
        bounds = choose_within(pipeline, weights, answers[0][1], nothing)[1]["cost_bounds"]
        bounds = bounds.view(*bounds.shape[:2], -1)
        low, high = bounds.amin(dim=1), bounds.amax(dim=1)
        budget = low + torch.rand(len(states), 1, generator=generator) * (high - low)
        allowance = CostAllowance(budget, steps, DEFAULT_RISK)
        rows = torch.arange(len(states))
        chosen = [choose_within(pipeline, weights, rates, allowance)[0] for _, rates in answers]
        acted = [actions[rows, choice] for (actions, _), choice in zip(answers, chosen, strict=True)]
        return Distillation(
            states=self.taught,
            held_out=len(self.states) - self.taught,
            same_choice=float((chosen[0] == chosen[1]).float().mean()),
            action_error=float((acted[0] - acted[1]).square().mean().sqrt()),
        )


@torch.no_grad()
def _ask(pipeline: Any, states: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's actions (B, N, A), and the rates it expects, (B, S, N) and (B, S, N, K)."""
    weights = torch.tensor(SAFETY_WEIGHT_GRID)
    actions = torch.stack(
        [policy_action(pipeline, states, weight.expand(len(states))) for weight in weights], 1
    )
    rates = [expected_rates(pipeline, states, actions, weights, each) for each in steps.unbind(1)]
    reward, costs = (torch.stack(each, dim=1) for each in zip(*rates, strict=True))
    return actions, reward, costs
