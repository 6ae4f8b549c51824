"""The device that a check estimates for."""

import torch

from trainer.check.memory import GIB, Device
from trainer.config import Config

USUAL_GPU_GIB = 80.0
"""An A100 or H100; what is assumed when nothing is said."""


def device_of(config: Config, gib: float | None) -> Device:
    """The device of ``trainer.device``, where "auto" is a GPU when this machine has one.

    Args:
        config: the run.
        gib: memory of a GPU, when the user names it.
    """
    name = config.trainer.device
    is_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return Device(is_gpu=is_gpu, bytes=int((gib or USUAL_GPU_GIB) * GIB))
