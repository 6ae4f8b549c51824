"""verl's vectorised GRPO advantages and vanilla policy loss; run by bench_losses.py with the peer's own interpreter.

Loads the batch that bench_losses.py wrote, then answers each line on stdin ("advantages" or "loss") with one JSON line:
seconds, and numbers that show both sides computed the same thing.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage, compute_policy_loss_vanilla


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("batch")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    arrays = np.load(arguments.batch)
    batch = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # The fastest mask for each function: whole numbers, as verl's rollouts make it, and floats.
    mask, float_mask = batch["mask"].long(), batch["mask"].float()
    token_level_rewards = torch.zeros(mask.shape)
    token_level_rewards[torch.arange(len(mask)), mask.sum(dim=1) - 1] = batch["rewards"]
    advantages = batch["advantages"].unsqueeze(1) * mask
    denominators = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(mask)}
    config = OmegaConf.create({"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0})
    config.global_batch_info = denominators
    log_probs = batch["log_probs"].requires_grad_()

    def run_advantages() -> dict[str, float]:
        start, cpu = time.perf_counter(), time.process_time()
        result, _ = compute_grpo_vectorized_outcome_advantage(token_level_rewards, float_mask, arrays["group_ids"])
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "check": float(result[:, 0].abs().sum())}

    def run_loss() -> dict[str, float]:
        log_probs.grad = None
        start, cpu = time.perf_counter(), time.process_time()
        loss, _ = compute_policy_loss_vanilla(
            batch["old_log_probs"], log_probs, advantages, mask, loss_agg_mode="token-mean", config=config
        )
        loss.backward()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "check": float(loss.detach()),
            "gradient": float(log_probs.grad.norm()),
        }

    work = {"advantages": run_advantages, "loss": run_loss}
    for line in sys.stdin:
        print("ANSWER " + json.dumps(work[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
