"""Safe offline reinforcement learning with diffusion policies, as diffusers pipelines."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.data.tasks import get_task
    from spi_diffusers.envs import make_env, make_vector_env
    from spi_diffusers.evaluation.assess import assess
    from spi_diffusers.evaluation.certify import certify
    from spi_diffusers.evaluation.evaluate import evaluate
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyOutput, SPIPolicyPipeline
    from spi_diffusers.pipelines.pretrained import pretrained
    from spi_diffusers.training.train import train

_MODULES = {
    "BaselinePolicyPipeline": "spi_diffusers.pipelines",
    "SPIPolicyOutput": "spi_diffusers.pipelines",
    "SPIPolicyPipeline": "spi_diffusers.pipelines",
    "assess": "spi_diffusers.evaluation.assess",
    "certify": "spi_diffusers.evaluation.certify",
    "evaluate": "spi_diffusers.evaluation.evaluate",
    "get_task": "spi_diffusers.data.tasks",
    "load_transitions": "spi_diffusers.data.loading",
    "make_env": "spi_diffusers.envs",
    "make_vector_env": "spi_diffusers.envs",
    "pretrained": "spi_diffusers.pipelines.pretrained",
    "train": "spi_diffusers.training.train",
}

__all__ = [
    "BaselinePolicyPipeline",
    "SPIPolicyOutput",
    "SPIPolicyPipeline",
    "__version__",
    "assess",
    "certify",
    "evaluate",
    "get_task",
    "load_transitions",
    "make_env",
    "make_vector_env",
    "pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `spi --help` must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
