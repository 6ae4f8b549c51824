"""The device that a check estimates for."""

import torch

from cfpo_hybrid.errors import ConfigError
from trainer.check.memory import GIB, Device
from trainer.config import Config

USUAL_GPU_GIB = 80.0
"""An A100 or H100; what is assumed when nothing is said."""


def device_of(config: Config, gib: float | None) -> Device:
    """The device of ``trainer.device``, where "auto" is a GPU when this machine has one or the user speaks of one.

    Args:
        config: the run.
        gib: memory of a GPU, when the user names it.

    Raises:
        ConfigError: that is no memory, or the run is on a CPU.
    """
    name = config.trainer.device
    if gib is not None and not 0 < gib < float("inf"):
        raise ConfigError(f"--gpu-memory {gib:g}: name the memory of one GPU in GiB, above 0, e.g. 80")
    if gib is not None and name == "cpu":
        raise ConfigError(f"--gpu-memory {gib:g}: trainer.device=cpu uses no GPU; leave one of them out")
    is_gpu = name == "cuda" or (name == "auto" and (gib is not None or torch.cuda.is_available()))
    return Device(is_gpu=is_gpu, bytes=int((gib or USUAL_GPU_GIB) * GIB))
