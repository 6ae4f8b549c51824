"""What measuring costs: an optimizer step with no metrics, with those of every run, and with all that can be asked for.

    .venv/bin/python tests/benchmarks/bench_metrics.py [--rounds 7] [--rows 64]

The model of bench_step.py (hidden 256, 6 layers, 4.8 million parameters), one process of one thread, rows of 32 + 128
tokens in micro-batches of 2048, one mini-batch. Gradient norm, loss and the forward and backward pass are in all three.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from clock import medians  # noqa: E402
from transformers import Qwen2Config  # noqa: E402

from cfpo_hybrid.algorithms import objective as objective_module  # noqa: E402
from cfpo_hybrid.algorithms.objective import PolicyObjective  # noqa: E402
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss  # noqa: E402
from cfpo_hybrid.algorithms.rollout_correction import RolloutCorrection  # noqa: E402
from cfpo_hybrid.models import model_shape  # noqa: E402
from cfpo_hybrid.parallel_layout import ParallelLayout  # noqa: E402
from cfpo_hybrid.protocol import DataProto  # noqa: E402
from workers.config import ActorConfig, OptimizerConfig  # noqa: E402
from workers.megatron.grad_cosine import GradientCosine  # noqa: E402
from workers.megatron.policy import MegatronPolicy  # noqa: E402

PROMPT_TOKENS, NEW_TOKENS, VOCAB = 32, 128, 256


def make_policy() -> MegatronPolicy:
    model = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    actor = ActorConfig(lr=1e-5, micro_batch_tokens=2048, optimizer=OptimizerConfig(grad_cosine=True))
    policy = MegatronPolicy(
        model_shape(model.to_dict()),
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


def measure(rounds: int, rows: int) -> dict[str, float]:
    policy = make_policy()
    batch = make_batch(rows, policy)
    plain = PolicyObjective(loss=build_policy_loss("cfpo"))
    corrected = PolicyObjective(
        loss=build_policy_loss("cfpo"), correction=RolloutCorrection(mode="mask", lower=0.5, reject_upper=1.1)
    )
    cosine = policy.optimizer.cosine
    assert isinstance(cosine, GradientCosine)

    def update(chosen: PolicyObjective, *, with_cosine: bool) -> None:
        policy.optimizer.cosine = cosine if with_cosine else None
        policy.update(batch, chosen)

    def without_metrics() -> None:
        with mock.patch.object(objective_module, "token_metrics", lambda *_: {}):
            update(plain, with_cosine=False)

    calls = {
        "no metrics": without_metrics,
        "the metrics of every run": lambda: update(plain, with_cosine=False),
        "and correction, gradient cosine": lambda: update(corrected, with_cosine=True),
    }
    return medians(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        seconds = measure(options.rounds, options.rows)
        dist.destroy_process_group()
    bare = seconds["no metrics"]
    print(f"{options.rows * NEW_TOKENS:,} response tokens, medians of {options.rounds} interleaved optimizer steps")
    for name, taken in seconds.items():
        print(f"  {name:<34}{1e3 * taken:>9.1f} ms{100 * (taken / bare - 1):>+8.2f} %")


if __name__ == "__main__":
    main()
