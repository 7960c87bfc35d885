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
