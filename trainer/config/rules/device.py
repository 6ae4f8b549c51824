"""Rules about devices: what a CPU cannot do. bfloat16 works on both."""

from collections.abc import Iterator

from trainer.config.problem import Problem
from trainer.config.root import Config

DEVICE = "trainer.device"


def offload(config: Config) -> Iterator[Problem]:
    """Host memory is where a CPU run already is."""
    if config.actor.megatron.offload and config.trainer.device == "cpu":
        key = "actor.megatron.offload"
        yield Problem(
            (key, DEVICE), f"{key}=true moves state from a GPU to host memory, but {DEVICE}=cpu; set it false"
        )


def attention(config: Config) -> Iterator[Problem]:
    """flash-attn and torch's varlen kernels are CUDA's."""
    key, value = "actor.attention", config.actor.attention
    if config.trainer.device == "cpu" and value in ("flash_attn", "torch_varlen"):
        yield Problem((key, DEVICE), f"{key}={value} needs a GPU, but {DEVICE}=cpu; set {key}=sdpa or auto")


RULES = (offload, attention)
