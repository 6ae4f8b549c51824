"""A whole rollout and update step beside TRL's GRPOTrainer on the same two cores, at its best micro-batch: samples a second.

    .venv/bin/python tests/benchmarks/bench_step.py [--rounds 2] [--steps 5] [--trl-micro-batches 16 32 64]

Both sides take turns, ``--rounds`` times ``--steps`` steps each, so that a machine whose pace changes treats them alike.

Both sides: Qwen2 shape, hidden 256, 6 layers, vocabulary 256 (4.8 million parameters, random), 64 prompts x 4, prompts of 32
and exactly 128 new tokens, one iteration over one mini-batch, AdamW. Ours is the product's own step without the grading
(random rewards on both sides): Ray, two workers of one thread, vLLM and Megatron-core in each, a reshard at the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from peers import peer_python  # noqa: E402

from cfpo_hybrid.algorithms.advantage import compute_advantages  # noqa: E402
from cfpo_hybrid.protocol import DataProto  # noqa: E402
from trainer.config import (  # noqa: E402
    Config,
    DataConfig,
    TrainerConfig,
)
from trainer.launch.live_engines import start_actors  # noqa: E402
from trainer.launch.ray_cluster import ray_cluster  # noqa: E402
from trainer.session import hybrid_settings  # noqa: E402
from workers.config import ActorConfig, ModelConfig, PolicyLossConfig, RolloutConfig  # noqa: E402
from workers.hybrid_worker import HybridWorker  # noqa: E402
from workers.rollout.engine import SamplingSettings  # noqa: E402

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, VOCAB = 64, 4, 32, 128, 256
ROWS = PROMPTS * GROUP


def model_config() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(model_config()).save_pretrained(folder)


def make_config(folder: Path, dtype: str, micro_batch_tokens: int) -> Config:
    return Config(
        model=ModelConfig(path=str(folder)),
        data=DataConfig(
            train_files=[], train_batch_size=PROMPTS, max_prompt_length=PROMPT_TOKENS, max_response_length=NEW_TOKENS
        ),
        rollout=RolloutConfig(group_size=GROUP, kv_cache_bytes=2**28, probe_every=0, bucket_bytes=2**24),
        policy_loss=PolicyLossConfig(name="cfpo"),
        actor=ActorConfig(lr=1e-5, dtype=dtype, micro_batch_tokens=micro_batch_tokens),
        trainer=TrainerConfig(num_workers=2, device="cpu", total_steps=100),
    )


def make_prompts(step: int) -> DataProto:
    generator = torch.Generator().manual_seed(step)
    prompts = torch.randint(3, VOCAB, (PROMPTS, PROMPT_TOKENS), generator=generator)
    return DataProto(
        {
            "prompts": prompts.repeat_interleave(GROUP, dim=0),
            "prompt_lengths": torch.full((ROWS,), PROMPT_TOKENS),
            "group_ids": torch.arange(PROMPTS).repeat_interleave(GROUP),
            "seeds": torch.randint(2**62, (ROWS,), generator=generator),
        }
    )


def run_step(actors, step: int) -> dict[str, float]:
    sampling = SamplingSettings(max_tokens=NEW_TOKENS, ignore_stop=True)
    marks = [time.perf_counter()]
    prompts = make_prompts(step)
    batch = prompts.merge(actors.run(HybridWorker.generate, prompts, sampling))
    marks.append(time.perf_counter())
    assert batch["response_lengths"].eq(NEW_TOKENS).all()
    rewards = torch.rand(ROWS, generator=torch.Generator().manual_seed(step))
    advantages = compute_advantages("grpo", rewards, batch["group_ids"])
    batch = batch.with_columns(advantages=advantages, mini_batch=torch.zeros(ROWS, dtype=torch.int64))
    actors.run(HybridWorker.wake_training)
    actors.run(HybridWorker.update_policy, batch)
    marks.append(time.perf_counter())
    actors.run(HybridWorker.sync_weights, False)
    marks.append(time.perf_counter())
    return {
        "generate": marks[1] - marks[0],
        "update": marks[2] - marks[1],
        "reshard": marks[3] - marks[2],
        "step": marks[3] - marks[0],
    }


def measure_ours(folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    config = make_config(folder, options.dtype, options.micro_batch_tokens)
    with ray_cluster(config.trainer, "cpu"), start_actors(config) as actors:
        actors.run(HybridWorker.begin_run, hybrid_settings(config))
        actors.run(HybridWorker.sync_weights, True)
        return [run_step(actors, step) for step in range(options.steps + 1)][1:]


def measure_trl(micro_batch: int, steps: int) -> list[dict[str, float]]:
    command = [peer_python("trl"), ROOT / "tests/benchmarks/peer_trl_step.py", "--steps", steps]
    command += ["--micro-batch", micro_batch]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(answer.stderr)
    return [{"step": seconds} for seconds in json.loads(answer.stdout.strip().splitlines()[-1])["seconds"]]


def take_turns(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Steps by system, ours under ``"ours"``."""
    trl = {} if options.skip_peer else {f"TRL, micro-batch {size}": size for size in options.trl_micro_batches}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in (*trl, "ours")}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for _ in range(options.rounds):
            steps["ours"] += measure_ours(Path(folder), options)
            for name, size in trl.items():
                steps[name] += measure_trl(size, options.steps)
    return steps


def show(steps: dict[str, list[dict[str, float]]]) -> None:
    medians = {name: statistics.median(step["step"] for step in own) for name, own in steps.items()}
    best = min((seconds for name, seconds in medians.items() if name != "ours"), default=None)
    print(f"{'':28}{'seconds a step':>16}{'fastest':>10}{'samples/s':>12}{'x best TRL':>12}")
    for name, own in steps.items():
        ratio = "" if best is None else f"{best / medians[name]:12.2f}"
        fastest = min(step["step"] for step in own)
        print(f"{name:28}{medians[name]:16.2f}{fastest:10.2f}{ROWS / medians[name]:12.1f}{ratio}")
    for part in ("generate", "update", "reshard"):
        print(f"{'  ' + part:28}{statistics.median(step[part] for step in steps['ours']):16.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--trl-micro-batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--skip-peer", action="store_true")
    show(take_turns(parser.parse_args()))


if __name__ == "__main__":
    main()
