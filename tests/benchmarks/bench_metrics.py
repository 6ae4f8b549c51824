"""What measuring costs within an optimizer step: seconds spent in each part of it, beside those of the whole step.

    .venv/bin/python tests/benchmarks/bench_metrics.py [--rounds 5] [--rows 64]

The model of bench_step.py (hidden 256, 6 layers, 4.8 million parameters), one process of one thread, rows of 32 + 128
tokens in micro-batches of 2048, one mini-batch. Parts are timed inside of the step, since the difference of a step with and
one without them is less than steps differ among themselves; that difference is printed too.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from bench_step import NEW_TOKENS, PROMPT_TOKENS, VOCAB, model_config  # noqa: E402

from cfpo_hybrid.algorithms import objective as objective_module  # noqa: E402
from cfpo_hybrid.algorithms.mismatch import RolloutCorrection  # noqa: E402
from cfpo_hybrid.algorithms.objective import PolicyObjective  # noqa: E402
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss  # noqa: E402
from cfpo_hybrid.models import model_shape  # noqa: E402
from cfpo_hybrid.parallel_layout import ParallelLayout  # noqa: E402
from cfpo_hybrid.protocol import DataProto  # noqa: E402
from workers.config import ActorConfig, OptimizerConfig  # noqa: E402
from workers.megatron.mini_batch_loss import MiniBatchLoss  # noqa: E402
from workers.megatron.optimizer import GradientCosine  # noqa: E402
from workers.megatron.policy import MegatronPolicy  # noqa: E402


def make_policy(actor: ActorConfig) -> MegatronPolicy:
    policy = MegatronPolicy(
        model_shape(model_config().to_dict()),
        actor,
        ParallelLayout(),
        rank=0,
        device=torch.device("cpu"),
        seed=0,
        total_optimizer_steps=1000,
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in policy.parameters_by_name().items():
        if "norm" not in name:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    policy.weights_changed()
    return policy


def make_batch(rows: int, policy: MegatronPolicy) -> DataProto:
    generator = torch.Generator().manual_seed(0)
    batch = DataProto(
        {
            "prompts": torch.randint(VOCAB, (rows, PROMPT_TOKENS), generator=generator),
            "prompt_lengths": torch.full((rows,), PROMPT_TOKENS),
            "responses": torch.randint(VOCAB, (rows, NEW_TOKENS), generator=generator),
            "response_lengths": torch.full((rows,), NEW_TOKENS),
            "response_mask": torch.ones(rows, NEW_TOKENS, dtype=torch.bool),
            "advantages": torch.randn(rows, generator=generator),
        }
    )
    old = policy.log_probs(batch)["old_log_probs"]
    noise = 0.01 * torch.randn(old.shape, generator=generator)
    return batch.with_columns(old_log_probs=old, rollout_log_probs=old + noise)


class Stopwatch:
    """Seconds spent in functions of the step, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        return timed


PARTS: dict[str, tuple[Any, str]] = {
    "metrics of every token": (objective_module, "token_metrics"),
    "their reduction": (MiniBatchLoss, "reduce"),
    "weights of the correction": (RolloutCorrection, "weigh"),
    "gradient cosine": (GradientCosine, "measure"),
}


def timed_step(update: Callable[[], object]) -> dict[str, float]:
    """Seconds of a step and of its parts."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            # Functions, not methods of mock: they bind to their owner as the originals do.
            stack.enter_context(mock.patch.object(owner, name, watch.around(part, getattr(owner, name))))
        watch.around("step", update)()
    return watch.seconds


def measure(rounds: int, rows: int) -> tuple[dict[str, float], float]:
    """Medians of the parts and the whole of a step, and of a step without metrics."""
    policy = make_policy(ActorConfig(lr=1e-5, micro_batch_tokens=2048, optimizer=OptimizerConfig(grad_cosine=True)))
    batch = make_batch(rows, policy)
    plain = PolicyObjective(loss=build_policy_loss("cfpo"))
    corrected = PolicyObjective(
        loss=build_policy_loss("cfpo"), correction=RolloutCorrection(mode="mask", lower=0.5, reject_upper=1.1)
    )
    cosine, steps, bare = policy.optimizer.cosine, [], []
    for _ in range(rounds + 1):
        policy.optimizer.cosine = cosine
        steps.append(timed_step(lambda: policy.update(batch, corrected)))
        policy.optimizer.cosine = None
        with mock.patch.object(objective_module, "token_metrics", lambda *_: {}):
            bare.append(timed_step(lambda: policy.update(batch, plain))["step"])
    medians = {part: statistics.median(step[part] for step in steps[1:]) for part in steps[0]}
    return medians, statistics.median(bare[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        seconds, bare = measure(options.rounds, options.rows)
        dist.destroy_process_group()
    step = seconds.pop("step")
    print(f"{options.rows * NEW_TOKENS:,} response tokens, medians of {options.rounds} optimizer steps")
    for part, taken in seconds.items():
        print(f"  {part:<28}{1e3 * taken:>9.1f} ms{100 * taken / step:>8.2f} %")
    print(f"  {'all of it':<28}{1e3 * sum(seconds.values()):>9.1f} ms{100 * sum(seconds.values()) / step:>8.2f} %")
    print(f"  {'the step':<28}{1e3 * step:>9.1f} ms; without any of it {1e3 * bare:.1f} ms")


if __name__ == "__main__":
    main()
