"""The weight sync itself on a CPU: beside a copy of memory, gloo's own pace, and gathering full tensors.

    .venv/bin/python tests/benchmarks/bench_reshard.py [--rounds 5]

A random dense model of 114 million parameters. Rank by rank the sources are Megatron's shards and the destinations vLLM's,
as plain tensors: no engine is needed to move weights. "Gathering" is what TRL, verl and slime do in essence: every rank
rebuilds each Hugging Face tensor from broadcasts of its shards, then cuts its own part out of it, as `load_weights` does.
"Gloo" is its pace where all four processes at a time exchange one warm buffer with a neighbour.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from clock import medians  # noqa: E402
from gloo import run_gloo  # noqa: E402
from resharding_world import small_shape  # noqa: E402

from cfpo_hybrid.models.hf_tensors import hf_shapes  # noqa: E402
from cfpo_hybrid.models.weight_plan import (  # noqa: E402
    Handover,
    Placement,
    rollout_specs,
    training_specs,
    weight_plan,
)
from cfpo_hybrid.parallel_layout import ParallelLayout  # noqa: E402
from cfpo_hybrid.resharding import ShardSpec  # noqa: E402
from cfpo_hybrid.resharding.transfer import Resharder  # noqa: E402

BUCKET_BYTES = 64 << 20
SHAPE = small_shape(
    num_layers=12,
    hidden_size=768,
    intermediate_size=2304,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=32_000,
    max_position_embeddings=2048,
)
PAIRS = [
    (ParallelLayout(tp=2, dp=2), ParallelLayout(tp=1, dp=4)),
    (ParallelLayout(pp=2, dp=2), ParallelLayout(tp=1, dp=4)),
    (ParallelLayout(tp=2, pp=2), ParallelLayout(tp=2, dp=2)),
    (ParallelLayout(tp=1, dp=4), ParallelLayout(tp=4)),
]
Parameters = dict[str, Tensor]


def allocate(specs: tuple[ShardSpec, ...], dtype: torch.dtype) -> Parameters:
    return {spec.name: torch.randn(spec.shape).to(dtype) for spec in specs}


def handover(training: ParallelLayout, rollout: ParallelLayout) -> Handover:
    world_size = training.world_size
    placement = Placement.colocated(world_size)
    return Handover(shape=SHAPE, training=training, rollout=rollout, placement=placement, ranks_per_node=world_size)


def one_process(dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Tp = pp = 1: the sync beside a copy of the same bytes, both into warm memory."""
    alone = handover(ParallelLayout(), ParallelLayout())
    sources, targets = (allocate(specs[0], dtype) for specs in (training_specs(alone), rollout_specs(alone)))
    resharder = Resharder(weight_plan(alone), rank=0, dtype=dtype, bucket_bytes=BUCKET_BYTES)
    size = sum(tensor.nbytes for tensor in sources.values())
    flat, copied = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    calls = {"sync": lambda: resharder.run(sources, targets), "memcpy": lambda: copied.copy_(flat)}
    return {**medians(calls, rounds), "bytes": size}


def gather_and_cut(plan: Handover, sources: Parameters, targets: Parameters) -> None:
    """Each Hugging Face tensor is rebuilt on every rank from one broadcast a shard, then cut."""
    rank = dist.get_rank()
    holders: dict[str, dict[Any, tuple[int, str, Any]]] = {}
    for other, specs in enumerate(training_specs(plan)):
        for spec in specs:
            for piece in spec.pieces:
                holders.setdefault(piece.hf_name, {}).setdefault(piece.hf, (other, spec.name, piece))
    wanted: dict[str, list[tuple[str, Any]]] = {}
    for spec in rollout_specs(plan)[rank]:
        for piece in spec.pieces:
            wanted.setdefault(piece.hf_name, []).append((spec.name, piece))
    dtype = next(iter(sources.values())).dtype
    for name, shape in hf_shapes(SHAPE).items():
        full = torch.empty(shape, dtype=dtype)
        for area, (holder, parameter, piece) in holders[name].items():
            part = (
                sources[parameter][piece.local.slices].contiguous()
                if holder == rank
                else torch.empty(area.size, dtype=dtype)
            )
            dist.broadcast(part, holder)
            full[area.slices] = part
        for parameter, piece in wanted.get(name, ()):
            targets[parameter][piece.local.slices] = full[piece.hf.slices]


def exchange(buffers: tuple[Tensor, Tensor]) -> None:
    """Every rank sends to its neighbour and receives from it: gloo's pace with all ranks busy."""
    peer = dist.get_rank() ^ 1
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, buffers[0], peer), dist.P2POp(dist.irecv, buffers[1], peer)])
    for work in works:
        work.wait()


def four_processes(training: ParallelLayout, rollout: ParallelLayout, rounds: int) -> dict[str, Any]:
    plan = handover(training, rollout)
    rank = dist.get_rank()
    sources = allocate(training_specs(plan)[rank], torch.float32)
    targets = allocate(rollout_specs(plan)[rank], torch.float32)
    begin = time.perf_counter()
    copies = weight_plan(plan)
    resharder = Resharder(copies, rank=rank, dtype=torch.float32, bucket_bytes=BUCKET_BYTES)
    planned = time.perf_counter() - begin
    buffers = (torch.zeros(BUCKET_BYTES // 4), torch.zeros(BUCKET_BYTES // 4))
    calls = {
        "sync": lambda: resharder.run(sources, targets),
        "gather": lambda: gather_and_cut(plan, sources, targets),
        "gloo": lambda: exchange(buffers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    runs = []
    for _ in range(rounds + 1):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            answer = call()
            dist.barrier()
            seconds[name].append(time.perf_counter() - start)
            if name == "sync":
                runs.append(answer)
    middle = sorted(runs[1:], key=lambda stats: stats.seconds)[rounds // 2]
    return {
        **{name: statistics.median(taken[1:]) for name, taken in seconds.items()},
        "plan": planned,
        "stats": middle,
    }


def words(layout: ParallelLayout) -> str:
    return f"tp{layout.tp} pp{layout.pp} dp{layout.dp}"


def row(ranks: list[dict[str, Any]]) -> list[str]:
    """The figures of a pair of layouts; parts are of the slowest rank, GB/s of all ranks together."""
    slow = max(ranks, key=lambda answer: answer["sync"])
    received = sum(answer["stats"].bytes_received for answer in ranks)
    parts = {part: max(answer["stats"].parts[part] for answer in ranks) for part in slow["stats"].parts}
    exchange = slow["sync"] - slow["stats"].parts["local"]
    return [
        f"{slow['sync'] * 1e3:.0f}",
        f"{slow['gather'] * 1e3:.0f}",
        f"{slow['gather'] / slow['sync']:.1f}",
        f"{sum(answer['stats'].bytes_local for answer in ranks) / 1e6:.0f}",
        f"{received / 1e6:.0f}",
        f"{received / exchange / 1e9:.2f}",
        f"{4 * BUCKET_BYTES / slow['gloo'] / 1e9:.2f}",
        f"{slow['plan'] * 1e3:.0f}",
        *(f"{seconds * 1e3:.0f}" for seconds in parts.values()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'one process':30}{'sync ms':>10}{'memcpy ms':>11}{'x memcpy':>10}{'GB/s':>7}")
    for dtype in (torch.float32, torch.bfloat16):
        found = one_process(dtype, rounds)
        rate = found["bytes"] / found["sync"] / 1e9
        ratio = found["sync"] / found["memcpy"]
        print(f"{dtype!s:30}{found['sync'] * 1e3:10.1f}{found['memcpy'] * 1e3:11.1f}{ratio:10.2f}{rate:7.1f}")
    columns = ("sync ms", "gather ms", "x faster", "MB local", "received", "GB/s", "gloo GB/s", "plan ms")
    columns += ("local", "pack", "move", "unpack")
    print(f"\n{'four processes':26}" + "".join(f"{column:>10}" for column in columns))
    for training, rollout in PAIRS:
        ranks = run_gloo(4, four_processes, training, rollout, rounds, timeout=300)
        name = f"{words(training)} -> tp{rollout.tp}"
        print(f"{name:26}" + "".join(f"{figure:>10}" for figure in row(ranks)), flush=True)


if __name__ == "__main__":
    main()
