"""Policies that were saved and exported."""

from pathlib import Path

import torch
from pipeline_factory import make_evaluation_critic, make_pipeline

from spi_diffusers.deployment.export import export
from spi_diffusers.models.evaluation_critic import NUM_LEVELS
from spi_diffusers.pipelines import SPIPolicyPipeline


def policy_with_margins(unit: float = 1.0) -> SPIPolicyPipeline:
    """Untrained; every weight is chosen somewhere. Costs are about `unit` a step."""
    torch.manual_seed(1)
    critic = make_evaluation_critic(cost_mean=unit, cost_unit=unit, cost_high=10 * unit, hidden_dims=[16, 16])
    with torch.no_grad():
        critic.net[-1].bias[1] = 1.0
        critic.net[-1].weight[1] *= 3.0
        critic.residuals.copy_(4 * ((torch.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS - 0.5))
        critic.observed_range.copy_(torch.tensor([[-1.0, -2.0, -10.0], [1.0, 2.0, 10.0]]))
    ranges = {"action_low": [-1.0, 0.0], "action_high": [1.0, 3000.0]}
    return make_pipeline(noise_options=ranges, evaluation_critic=critic, cost_margin=1.25)


def exported(pipeline, folder: Path, **options) -> Path:
    """Where a pipeline was exported to, after it was saved."""
    pipeline.save_pretrained(folder / "policy")
    return export(folder, **options)
