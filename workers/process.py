"""The start of a worker process: its place in torch.distributed, its device and what that computes in, its threads."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from cfpo_hybrid.single_controller import WorkerContext

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait in one collective: a peer may be generating or writing a checkpoint. Death of a peer is seen at once."""


def worker_environment(device: str, cpu_threads: int) -> dict[str, str]:
    """Variables that a worker process needs before it imports torch or vLLM.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        cpu_threads: threads of one process for tensor operations on a CPU.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    if device == "cpu":
        # Asking vLLM for log-probs compiles for 12 s otherwise; on a GPU the switch would disable vLLM's own compilation.
        environment |= {"OMP_NUM_THREADS": str(cpu_threads), "TORCHDYNAMO_DISABLE": "1"}
    return environment


@contextmanager
def process_group(context: WorkerContext, device: str) -> Iterator[torch.device]:
    """The device of this rank, which is part of the worker group's world until the block ends."""
    os.environ.setdefault("LOCAL_RANK", str(context.local_rank))
    if device == "cuda":
        # A worker sees all devices that its group holds on this node; the local rank is the index of its own.
        torch.cuda.set_device(context.local_rank)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method=f"tcp://{context.master_address}:{context.master_port}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    logger.info("rank %d of %d joined on %s", context.rank, context.world_size, device)
    try:
        yield torch.device("cuda", context.local_rank) if device == "cuda" else torch.device("cpu")
    finally:
        if dist.is_initialized():  # an engine that is closed may have left it already
            dist.destroy_process_group()


def resolve_dtype(*names: str, device: torch.device) -> torch.dtype:
    """The first dtype that is not "auto"; bfloat16 on a GPU and float32 on a CPU when all are."""
    for name in names:
        if name != "auto":
            return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32
