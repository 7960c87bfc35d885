"""Golden tensors: weights, inputs and what came of them, so that a later change of the numbers is noticed.

Every case is a file `<case>.safetensors` that holds its own weights and inputs beside the outputs. A test
runs the present code on the stored weights and inputs, so neither torch's random numbers nor the
initialisation matter; names and shapes of the weights do, as saved policies depend on them.

Regenerate after a deliberate change, and say in the commit why the numbers changed:

    python tests/golden/golden_cases.py --regenerate-golden [CASE ...]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.algorithms.spi import SPI, StepInputs, make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import MLPNoiseModel, TwinCritic

FOLDER = Path(__file__).parent
B, O, A, T = 8, 3, 2, 5  # noqa: E741 - batch, sizes of observation and action, diffusion steps
SIZES = {"observation_dim": O, "action_dim": A, "hidden_dims": [16, 16]}
CONFIGS = {
    "spi_update_one_step": SPIConfig(),
    "spi_update_chain": SPIConfig(conditioned=False, eta=0.5, mu=0.3, phi=0.2, guidance="chain"),
}
Tensors = dict[str, Tensor]


def networks(config: SPIConfig) -> dict[str, torch.nn.Module]:
    shared = SIZES | {"use_safety_weight": config.conditioned}
    return {
        "noise_model": MLPNoiseModel(**shared),
        "reward_critic": TwinCritic(**shared),
        "safety_critic": TwinCritic(**shared),
    }


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors named `prefix/...`, without the prefix."""
    return {k.removeprefix(prefix + "/"): v for k, v in tensors.items() if k.startswith(prefix + "/")}


def named(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}/{name}": value.detach().clone().contiguous() for name, value in tensors.items()}


def fresh_step(config: SPIConfig) -> Tensors:
    """A made-up batch with all the randomness of an update."""
    inputs = StepInputs(
        observation=torch.randn(B, O),
        next_observation=torch.randn(B, O),
        action=torch.rand(B, A) * 2 - 1,
        reward=torch.randn(B),
        cost=torch.randint(2, (B,)).float(),
        terminated=torch.arange(B) % 4 == 0,
        safety_weight=torch.rand(B),
        timestep=torch.arange(B) % T,
        noise=torch.randn(B, A),
        chain_noise=torch.randn(T, B, A),
        guidance_noise=torch.randn(T if config.guidance == "chain" else 0, B, A),
        twin=torch.tensor(1),
    )
    return inputs.tensors()


def fresh_inputs(case: str) -> Tensors:
    """Random weights and inputs of a case, as its file holds them."""
    torch.manual_seed(0)
    config = CONFIGS.get(case, SPIConfig())
    tensors: Tensors = {}
    for name, network in networks(config).items():
        if case in (name, "denoise") or case in CONFIGS:
            tensors |= named(f"weights/{name}", network.state_dict())
    if case in CONFIGS:
        for step in range(3):
            tensors |= named(f"step{step}", fresh_step(config))
        return tensors
    inputs = {"observation": torch.randn(B, O), "safety_weight": torch.rand(B)}
    inputs |= {"action": torch.randn(B, A), "timestep": torch.arange(B) % T, "noise": torch.randn(T, B, A)}
    return tensors | named("inputs", inputs)


def load_networks(tensors: Tensors, config: SPIConfig) -> dict[str, torch.nn.Module]:
    loaded = networks(config)
    for name, network in loaded.items():
        weights = part(tensors, f"weights/{name}")
        if weights:
            network.load_state_dict(weights)
    return loaded


@torch.no_grad()
def run_noise_model(tensors: Tensors) -> Tensors:
    x = part(tensors, "inputs")
    model = load_networks(tensors, SPIConfig())["noise_model"]
    return {"noise": model(x["action"], x["timestep"], x["observation"], x["safety_weight"]).sample}


@torch.no_grad()
def run_safety_critic(tensors: Tensors) -> Tensors:
    x = part(tensors, "inputs")
    critic = load_networks(tensors, SPIConfig())["safety_critic"]
    return {"values": critic(x["observation"], x["action"], x["safety_weight"]).values}


@torch.no_grad()
def run_denoise(tensors: Tensors) -> Tensors:
    x = part(tensors, "inputs")
    model = load_networks(tensors, SPIConfig())["noise_model"]
    coefficients = model.ddpm_coefficients(make_scheduler(SPIConfig()))
    actions = model.denoise(x["observation"], x["safety_weight"], coefficients, x["noise"])
    return {"coefficients": coefficients, "actions": actions}


def run_update(config: SPIConfig) -> Callable[[Tensors], Tensors]:
    def run(tensors: Tensors) -> Tensors:
        spi = SPI(config, **load_networks(tensors, config), compute=Compute())
        inputs = spi.prepare(StepInputs(**part(tensors, "step0")))
        outputs: Tensors = {"next_action0": inputs.next_action}
        for step in (1, 2):
            metrics, inputs = spi.update(inputs, StepInputs(**part(tensors, f"step{step}")))
            outputs |= named(f"metrics{step}", metrics) | {f"next_action{step}": inputs.next_action}
        for name in ("noise_model", "ema_noise_model", "reward_critic", "safety_critic", "target_critics"):
            outputs |= named(f"trained/{name}", getattr(spi, name).state_dict())
        return outputs

    return run


CASES: dict[str, Callable[[Tensors], Tensors]] = {
    "noise_model": run_noise_model,
    "safety_critic": run_safety_critic,
    "denoise": run_denoise,
    **{name: run_update(config) for name, config in CONFIGS.items()},
}


def path_of(case: str) -> Path:
    return FOLDER / f"{case}.safetensors"


def regenerate(case: str, folder: Path = FOLDER) -> Path:
    """Write a case's file anew, from fresh inputs and the present code."""
    tensors = fresh_inputs(case)
    path = folder / path_of(case).name
    save_file(tensors | named("outputs", CASES[case](tensors)), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regenerate-golden", nargs="*", metavar="CASE", required=True)
    for case in parser.parse_args().regenerate_golden or CASES:
        print(regenerate(case))


if __name__ == "__main__":
    main()
