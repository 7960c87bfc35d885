"""A policy's whole decision as one ONNX graph, made from the pipeline's own code."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spi_diffusers.evaluation import FAST
from spi_diffusers.models import BatchConstrainedActor, DeterministicActor, GaussianActor
from spi_diffusers.pipelines.allowance import CostAllowance
from spi_diffusers.pipelines.extraction import (
    NUM_CANDIDATES,
    SAFETY_WEIGHT_GRID,
    Rates,
    candidate_weights,
    choose_within,
    extract_reward,
    paper_values,
    student_values,
    value_policies,
)

#: Version of ONNX' operators; ONNX Runtime has it since 1.14.
OPSET = 18
#: Observations in the example that is traced: no size of a network, and not 1, which is broadcast.
_BATCH = 3


class Decision(nn.Module):
    """What a graph is made from: tensors in, tensors out, in the order of `inputs` and `outputs`.

    Attributes:
        extraction: How actions are chosen.
        inputs: Names of the arguments of `forward`.
        outputs: Names of what it returns.
        noise_shape: Of the standard normal noise that an observation needs; None: no noise is an input.
    """

    extraction: str
    inputs: tuple[str, ...] = ("observation", "noise")
    outputs: tuple[str, ...] = ("action",)
    noise_shape: tuple[int, ...] | None = None

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.pipeline = pipeline
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module):
                self.add_module(name, component)


class SafeDecision(Decision):
    """Safe extraction, which draws no noise; scalar `risk`, one of the other inputs per observation."""

    extraction = "safe"
    inputs = ("observation", "cost_budget", "steps_left", "risk")
    outputs = (
        *("action", "safety_weight", "expected_return", "expected_cost", "cost_bound"),
        *("step_cost", "feasible"),
    )

    def forward(self, observation: Tensor, budget: Tensor, steps: Tensor, risk: Any) -> tuple[Tensor, ...]:
        """As `SPIPolicyPipeline.__call__` with a budget, for float32 inputs that are in their ranges."""
        pipeline, critic = self.pipeline, self.pipeline.evaluation_critic
        states, grid = pipeline.normalizer(observation), torch.tensor(SAFETY_WEIGHT_GRID, dtype=torch.float32)
        allowance = CostAllowance(budget.unsqueeze(1), steps, risk)
        candidates, rates = self.expect(states, grid, allowance)
        chosen, values = choose_within(pipeline, grid, rates, allowance)
        action, weight = _picked(candidates, chosen), grid[chosen]
        step_cost = critic(states, action, weight, torch.ones_like(weight), return_dict=False)[1][:, 0]
        named = [
            _picked(values[name], chosen) for name in ("expected_returns", "expected_costs", "cost_bounds")
        ]
        action = pipeline.noise_model.to_environment_range(action)
        return (action, weight, *named, step_cost, values["feasible"])

    def expect(self, states: Tensor, weights: Tensor, allowance: CostAllowance) -> tuple[Tensor, Rates]:
        """Actions (B, N, A) and the expected rates of reward (B, N) and cost (B, N, 1) of every weight."""
        return value_policies(self.pipeline, states, weights, allowance)


class FastDecision(SafeDecision):
    """The same by the policy's student, everywhere: its teacher is not in the graph."""

    extraction = FAST

    def expect(self, states: Tensor, weights: Tensor, allowance: CostAllowance) -> tuple[Tensor, Rates]:
        """As of `SafeDecision`."""
        return student_values(self.pipeline, states, allowance)


class RewardDecision(Decision):
    """The paper's extraction (Eq. 12) from candidates that are denoised from the noise."""

    extraction = "reward"
    outputs = ("action", "reward_value", "safety_value")

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        model, steps = pipeline.noise_model, pipeline.scheduler.config.num_train_timesteps
        self.coefficients = model.coefficients_of(pipeline.scheduler, steps)
        self.noise_shape = (len(self.coefficients), NUM_CANDIDATES, model.config.action_dim)

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """As `SPIPolicyPipeline.__call__` with the noise (B, steps, N, A) in place of a generator."""
        pipeline = self.pipeline
        model, size = pipeline.noise_model, noise.shape[-1]
        conditioned = model.config.use_safety_weight
        weights, count = candidate_weights(conditioned, "reward", None, None, torch.device("cpu"))
        states = pipeline.normalizer(observation).repeat_interleave(count, dim=0)
        tiled = None if weights is None else weights.repeat(observation.shape[0])
        noise = noise.transpose(0, 1).reshape(len(self.coefficients), -1, size)
        candidates = model.denoise(states, tiled, self.coefficients, noise)
        values = paper_values(pipeline, states, candidates, tiled)
        values = {name: value.view(-1, count) for name, value in values.items()}
        chosen = extract_reward(values["reward_values"])
        action = model.to_environment_range(_picked(candidates.view(-1, count, size), chosen))
        return action, _picked(values["reward_values"], chosen), _picked(values["safety_values"], chosen)


class BaselineDecision(Decision):
    """The policy of a baseline."""

    extraction = "policy"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        actor = pipeline.actor
        if isinstance(actor, BatchConstrainedActor):
            self.noise_shape = (actor.config.num_candidates, actor.vae.latent_dim)
        elif isinstance(actor, DeterministicActor | GaussianActor):
            self.inputs = ("observation",)
        else:
            raise ValueError(
                f"a {type(actor).__name__} cannot be exported: it draws its action among candidates by "
                "their values, which the graph does not represent"
            )

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `BaselinePolicyPipeline.__call__`, with the latents (B, N, L) in place of a generator."""
        states, actor = self.pipeline.normalizer(observation), self.pipeline.actor
        action = actor.act(states) if noise is None else actor(states, noise)
        return self.pipeline.to_environment_range(action)


KINDS: dict[str, type[Decision]] = {
    kind.extraction: kind for kind in (SafeDecision, RewardDecision, FastDecision, BaselineDecision)
}


def make_decision(pipeline: Any, extraction: str | None = None) -> Decision:
    """What the graph of a policy is made from; ValueError says what cannot be represented.

    Args:
        pipeline: Of SPI or of a baseline, on the CPU.
        extraction: One of the ways in which it can act; by default the first of them.
    """
    extraction = extraction or pipeline.extractions[0]
    if extraction not in pipeline.extractions:
        known = ", ".join(pipeline.extractions)
        raise ValueError(f"this policy cannot act by extraction {extraction!r}; it has {known}")
    if extraction not in KINDS:
        raise ValueError(
            f"a policy of {pipeline.config.algorithm} cannot be exported: it looks at the steps before, "
            "or chooses among heads by a budget, and a graph does neither"
        )
    if len(getattr(pipeline, "cost_names", ())) > 1:
        raise ValueError(
            f"a policy of the costs {', '.join(pipeline.cost_names)} cannot be exported: the graph takes one "
            "budget"
        )
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    dtypes = {weight.dtype for network in networks for weight in network.parameters()} - {torch.float32}
    if dtypes:
        raise ValueError(f"weights of {dtypes.pop()} cannot be exported: load the policy in float32")
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None:
        steps = scheduler.config.num_train_timesteps
        if pipeline.noise_model.coefficients_of(scheduler, steps) is None:
            raise ValueError(
                f"a {type(scheduler).__name__} with these settings cannot be exported: it computes its steps "
                "as it goes, and the graph represents only the DDPM chain that SPI trains with"
            )
    return KINDS[extraction](pipeline)


def write_graph(decision: Decision, path: Path) -> None:
    """Write a decision as an ONNX graph of dynamic batch size."""
    import onnx

    config = decision.pipeline.normalizer.config
    example = {
        "observation": torch.zeros(_BATCH, config.observation_dim),
        "cost_budget": torch.ones(_BATCH),
        "steps_left": torch.ones(_BATCH),
        "risk": torch.tensor(0.05),
        "noise": torch.zeros(_BATCH, *(decision.noise_shape or ())),
    }
    batched = [name for name in (*decision.inputs, *decision.outputs) if name != "risk"]
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing warns of every size that is read: it becomes a constant. The check of the graph with batches
        # of other sizes shows that none of these matters. The exporter that torch recommends instead takes
        # twenty times as long for the same graph, and writes paths of this machine into it.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            decision.eval(),
            tuple(example[name] for name in decision.inputs),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(decision.inputs),
            output_names=list(decision.outputs),
            dynamic_axes={name: {0: "batch"} for name in batched},
        )
    model = onnx.load(str(path))
    onnx.checker.check_model(model)


def _picked(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen ones (B,) of (B, N) or (B, N, A): (B,) or (B, A)."""
    index = chosen.unsqueeze(1)
    if values.dim() == 3:
        index = index.unsqueeze(2).expand(-1, -1, values.shape[2])
    return values.gather(1, index).squeeze(1)
