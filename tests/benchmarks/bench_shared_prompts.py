"""What it saves to compute the prompt of a group once: one optimizer step with and without it, in turns.

    .venv/bin/python tests/benchmarks/bench_shared_prompts.py [--rounds 5]

The model of bench_step.py (hidden 256, 6 layers, 4.8 million parameters), one process of one thread, 64 rows in micro-batches
of 4096, on-policy. The limit is the share of tokens left: attention works on every row as before, and where rows of a
group differ in length it pads them.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from bench_metrics import make_policy  # noqa: E402
from bench_step import VOCAB  # noqa: E402
from clock import medians  # noqa: E402

from cfpo_hybrid.algorithms.objective import PolicyObjective  # noqa: E402
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss  # noqa: E402
from cfpo_hybrid.protocol import DataProto  # noqa: E402
from workers.config import ActorConfig  # noqa: E402

ROWS = 64


@dataclass(frozen=True)
class Shape:
    """Prompts and responses of a batch; responses are evenly spread over a range of lengths."""

    group: int
    prompt: int
    shortest: int
    longest: int


SHAPES = (Shape(4, 32, 128, 128), Shape(4, 32, 32, 128), Shape(8, 128, 128, 128), Shape(8, 128, 32, 224))


def make_batch(shape: Shape) -> DataProto:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(ROWS) // shape.group
    lengths = torch.linspace(shape.shortest, shape.longest, ROWS)[torch.randperm(ROWS, generator=generator)].long()
    return DataProto(
        {
            "prompts": torch.randint(VOCAB, (ROWS // shape.group, shape.prompt), generator=generator)[groups],
            "prompt_lengths": torch.full((ROWS,), shape.prompt),
            "group_ids": groups,
            "responses": torch.randint(VOCAB, (ROWS, shape.longest), generator=generator),
            "response_lengths": lengths,
            "response_mask": torch.arange(shape.longest) < lengths.unsqueeze(1),
            "advantages": torch.randn(ROWS, generator=generator),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    policy = make_policy(ActorConfig(lr=1e-5, micro_batch_tokens=4096))
    objective = PolicyObjective(loss=build_policy_loss("cfpo"))
    print(
        f"{'group':>6}{'prompt':>8}{'responses':>12}{'apart, s':>10}{'shared, s':>11}{'time left':>11}{'tokens left':>13}"
    )
    for shape in SHAPES:
        batch = make_batch(shape)
        apart = batch.without("group_ids")
        calls = {
            "apart": lambda apart=apart: policy.update(apart, objective, on_policy=True),
            "shared": lambda batch=batch: policy.update(batch, objective, on_policy=True),
        }
        seconds = medians(calls, rounds)
        saved = shape.prompt * (ROWS - ROWS // shape.group)
        tokens = 1 - saved / int(batch.num_tokens.sum())
        responses = f"{shape.shortest}-{shape.longest}"
        print(
            f"{shape.group:6}{shape.prompt:8}{responses:>12}{seconds['apart']:10.2f}{seconds['shared']:11.2f}"
            f"{seconds['shared'] / seconds['apart']:11.2f}{tokens:13.2f}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
