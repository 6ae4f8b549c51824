"""Runs a function in several processes joined by gloo, for tests of distributed code."""

import multiprocessing
import os
import pickle
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "beartype",
    "jaxtyping",
    "megatron.core.distributed",
    "megatron.core.models.gpt",
    "megatron.core.optimizer",
    "tensordict",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
]
"""Slow to import: a server does it once for all tests, and every rank is forked from it."""


def run_gloo(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0, check_shapes: bool = False
) -> list[Any]:
    """``function(*args)`` on every rank of a gloo world; the results by rank.

    Args:
        world_size: number of processes, one thread each.
        function: importable by name (top level of a module); asks torch.distributed for its rank.
        args: the same for every rank; picklable.
        timeout: seconds, start of the processes included.
        check_shapes: at run time, as pytest does in its own process; a training step takes twice as long.

    Raises:
        AssertionError: a rank raised, died or was too slow; the first failing rank's traceback is the message.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    call = pickle.dumps((function, args))  # its module is imported by a rank that checks shapes already
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, rank, world_size, f"file://{Path(folder) / 'rendezvous'}", call, check_shapes)
            process = context.Process(target=_rank_main, args=arguments, daemon=True)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(open_pipes, timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"ranks {sorted(set(range(len(pipes))) - set(results))} did not answer in time"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                succeeded, answer = pickle.loads(pipe.recv_bytes())
            except EOFError:
                succeeded, answer = False, "the process died"
            assert succeeded, f"rank {rank} of {len(pipes)} failed:\n{answer}"
            results[rank] = answer
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    sender: Connection, rank: int, world_size: int, rendezvous: str, call: bytes, check_shapes: bool
) -> None:
    # A rank's locks would keep their names in shared memory, where another test looks for what a run has left.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        if check_shapes:
            _check_shapes()
        function, args = pickle.loads(call)
        _send(sender, True, function(*args))
        dist.barrier()
    except Exception:
        _send(sender, False, traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check_shapes() -> None:
    """Of the packages that pyproject.toml names."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (checked,) = (option.partition("=")[2] for option in options if option.startswith("--jaxtyping-packages="))
    *packages, checker = checked.split(",")
    install_import_hook(packages, checker)


def _send(sender: Connection, succeeded: bool, answer: Any) -> None:
    # Pickled by value: torch's own way shares memory that is gone when this process ends.
    sender.send_bytes(pickle.dumps((succeeded, answer)))
