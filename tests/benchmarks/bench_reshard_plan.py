"""Reshard plans of large models on 8 to 2,048 ranks: time to plan, bytes against the lower bound, balance, foreseen seconds.

    .venv/bin/python tests/benchmarks/bench_reshard_plan.py
    .venv/bin/python tests/benchmarks/bench_reshard_plan.py --models 72B --nvlink 300 --network 25

Nothing is moved: the seconds are bytes over bandwidth. A rank sends and receives at the same time; bytes within a node pass
NVLink, others the network, and both go on side by side, so a sync takes as long as the slower of the two of the busiest
rank. What a rank copies within its own memory is read and written at the memory's bandwidth before that.
"""

import argparse
import time

from rich.console import Console
from rich.table import Table

from cfpo_hybrid.models import PipelineCut, model_shape
from cfpo_hybrid.models.weight_plan import Handover, Placement, rollout_specs, training_specs, weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding.traffic import PlanTraffic, plan_traffic

QWEN25 = {"model_type": "qwen2", "vocab_size": 152064, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
COMMON = {"max_position_embeddings": 32768, "tie_word_embeddings": False}
CONFIGS = {
    "Qwen2.5-7B": {
        **(QWEN25 | COMMON),
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen2.5-72B": {
        **(QWEN25 | COMMON),
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "Qwen3-235B-A22B": {
        **COMMON,
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 94,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "norm_topk_prob": True,
    },
}
"""As in the models' config.json, so far as a shape needs it."""

CASES = {
    # (ranks, training tp, pp, ep, rollout tp)
    "Qwen2.5-7B": [
        (8, 2, 1, 1, 2),
        (8, 4, 1, 1, 1),
        (8, 1, 1, 1, 4),
        (8, 2, 2, 1, 2),
        (64, 2, 2, 1, 2),
        (512, 4, 2, 1, 1),
        (2048, 4, 2, 1, 2),
    ],
    "Qwen2.5-72B": [
        (64, 8, 1, 1, 8),
        (64, 8, 4, 1, 8),
        (64, 4, 8, 1, 8),
        (512, 8, 8, 1, 8),
        (512, 8, 4, 1, 4),
        (2048, 8, 8, 1, 8),
    ],
    "Qwen3-235B-A22B": [(64, 4, 2, 8, 8), (512, 4, 8, 16, 8), (2048, 4, 8, 16, 8)],
}
LAST_STAGE = {("Qwen3-235B-A22B", 8): 10}
"""94 layers do not divide by 8: seven stages of 12 and one of 10."""
RANKS_PER_NODE = 8
BF16 = 2

PEERS = """Published by others, as they reported it; other GPUs, other layouts, and some count only a part of a sync:
  verl, Qwen2.5-7B: 3.9-4.9 s with differences, 5.5-6.0 s over NCCL; -72B: 12-13 s and 28.5-29.1 s; Qwen3-235B: 11.4-14.9 s
    and 246-266 s (its page on delta weight sync)
  HybridFlow paper: 70B, mean transition 11.7 s less than its baselines (arXiv 2409.19256)
  NeMo-RL, overlap, separate GPUs: Qwen3-235B 13 -> 5.5 s; its NCCL shard transfer 4.56-4.85 s (pull requests 1379, 2808)
  checkpoint-engine: Qwen3-235B 6.22 s, broadcast alone, without gathering from training (its README)
  SkyRL: Qwen3-235B on 4 nodes, 64.7 s over NCCL, 3.54 s by sharded pull (pull request 2090)"""


def foreseen_seconds(traffic: PlanTraffic, arguments: argparse.Namespace) -> float:
    def seconds(rank: int) -> float:
        seen = traffic.ranks[rank]
        near = max(seen.sent - seen.sent_to_other_nodes, seen.received - seen.received_from_other_nodes)
        far = max(seen.sent_to_other_nodes, seen.received_from_other_nodes)
        moving = max(near / arguments.nvlink, far / arguments.network)
        return (2 * seen.local / arguments.memory + moving) / 1e9

    return max(map(seconds, range(len(traffic.ranks))))


def measure(model: str, case: tuple[int, int, int, int, int], arguments: argparse.Namespace) -> list[str]:
    world, tp, pp, ep, rollout_tp = case
    handover = Handover(
        shape=model_shape(CONFIGS[model]),
        training=ParallelLayout.of_world(world, tp=tp, pp=pp, ep=ep),
        rollout=ParallelLayout.of_world(world, tp=rollout_tp),
        placement=Placement.colocated(world),
        ranks_per_node=RANKS_PER_NODE,
        cut=PipelineCut(last=LAST_STAGE.get((model, pp))),
    )
    for cached in (training_specs, rollout_specs, weight_plan):
        cached.cache_clear()
    begin, used = time.perf_counter(), time.process_time()
    plan = weight_plan(handover)
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    traffic = plan_traffic(plan, training_specs(handover), rollout_specs(handover), BF16)
    most = max(traffic.ranks, key=lambda rank: rank.received)
    experts = f" ep {ep}" if ep > 1 else ""
    return [
        model,
        str(world),
        f"tp {tp} pp {pp}{experts}",
        f"tp {rollout_tp}",
        f"{wall:.2f}",
        f"{cpu:.2f}",
        f"{max(rank.local for rank in traffic.ranks) / 1e9:.2f}",
        f"{most.received / 1e9:.2f}",
        f"{most.lower_bound / 1e9:.2f}",
        f"{traffic.ratio:.3f}",
        f"{traffic.imbalance:.3f}",
        f"{foreseen_seconds(traffic, arguments):.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), help="parts of their names")
    parser.add_argument("--max-ranks", type=int, default=2048)
    parser.add_argument("--nvlink", type=float, default=400.0, help="GB/s of a GPU in each direction (H100: 450)")
    parser.add_argument("--network", type=float, default=45.0, help="GB/s of a GPU in each direction (400 Gb/s: 50)")
    parser.add_argument("--memory", type=float, default=2500.0, help="GB/s of a GPU's own memory, read plus written")
    arguments = parser.parse_args()
    headers = ["model", "ranks", "train", "rollout", "plan s", "CPU s"]
    headers += ["local GB", "received GB", "bound GB", "ratio", "sender", "sync s"]
    table = Table(*headers, caption="GB: bf16, of the rank with most; sender: bytes of the largest one over the mean")
    for model, cases in CASES.items():
        for case in cases:
            if any(part in model for part in arguments.models) and case[0] <= arguments.max_ranks:
                table.add_row(*measure(model, case, arguments))
    Console(width=150).print(table)
    print(
        f"sync s: at {arguments.nvlink:g} GB/s within a node, {arguments.network:g} between nodes, memory {arguments.memory:g}"
    )
    print(PEERS)


if __name__ == "__main__":
    main()
