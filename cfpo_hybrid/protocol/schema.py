"""The columns a batch may have: name, dtype, shape, who writes and who reads them.

Axes: ``batch`` rows are single responses (a prompt repeated ``group_size`` times is that many rows), ``prompt`` and
``response`` are padded token positions. Prompts and responses are both right-padded and kept apart; the engines pack
the real tokens. A column whose first axis is not ``batch`` does not exist.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a batch.

    Args:
        dtype: torch dtype, or ``object`` for a non-tensor column (a numpy object array, one value a row).
        axes: names of the axes, the first always ``"batch"``.
        writer: the stage of the way of a batch that fills it.
        readers: the stages that use it.
        meaning: one line for people.
    """

    dtype: torch.dtype | type
    axes: tuple[str, ...]
    writer: str
    readers: tuple[str, ...]
    meaning: str


SCHEMA: dict[str, Column] = {
    # 1 data
    "prompts": Column(
        torch.int64, ("batch", "prompt"), "data", ("rollout", "megatron"), "prompt token ids, right-padded"
    ),
    "prompt_lengths": Column(torch.int64, ("batch",), "data", ("rollout", "megatron"), "real tokens of each prompt"),
    "group_ids": Column(
        torch.int64, ("batch",), "data", ("advantage", "megatron"), "index of the prompt in the rollout batch"
    ),
    "sample_ids": Column(torch.int64, ("batch",), "data", ("rollout",), "index of the response within its group"),
    "seeds": Column(
        torch.int64, ("batch",), "data", ("rollout",), "sampling seed from (run seed, step, prompt, sample)"
    ),
    "problem": Column(object, ("batch",), "data", ("reward",), "problem text before the chat template"),
    "ground_truth": Column(object, ("batch",), "data", ("reward",), "the reference answer or solution"),
    "extra": Column(object, ("batch",), "data", ("reward",), "further data set fields as a dict, for custom rewards"),
    # 2 rollout
    "responses": Column(
        torch.int64, ("batch", "response"), "rollout", ("reward", "megatron"), "response ids, right-padded"
    ),
    "response_lengths": Column(
        torch.int64, ("batch",), "rollout", ("reward", "advantage", "megatron"), "real tokens, stop included"
    ),
    "response_mask": Column(
        torch.bool, ("batch", "response"), "rollout", ("megatron",), "positions that count in the loss"
    ),
    "rollout_log_probs": Column(
        torch.float32, ("batch", "response"), "rollout", ("megatron",), "what vLLM sampled with"
    ),
    "truncated": Column(torch.bool, ("batch",), "rollout", ("reward", "metrics"), "response hit the length limit"),
    # 3 reward
    "rewards": Column(torch.float32, ("batch",), "reward", ("advantage", "metrics"), "one number a response"),
    "greedy_rewards": Column(
        torch.float32, ("batch",), "reward", ("advantage",), "reward of the greedy response to the row's prompt"
    ),
    # before 4, by the driver
    "mini_batch": Column(
        torch.int64, ("batch",), "mini_batches", ("megatron",), "which optimizer step of a pass uses the row"
    ),
    # 4 megatron, recomputed
    "old_log_probs": Column(torch.float32, ("batch", "response"), "megatron", ("megatron",), "log pi_old, fp32"),
    "ref_log_probs": Column(torch.float32, ("batch", "response"), "megatron", ("megatron",), "log pi_ref, fp32"),
    "kept_log_mass": Column(
        torch.float32,
        ("batch", "response"),
        "megatron",
        ("megatron",),
        "log of the probability that top-p and top-k keep",
    ),
    "entropy": Column(torch.float32, ("batch", "response"), "megatron", ("metrics",), "policy entropy in nats"),
    "ref_kl": Column(
        torch.float32, ("batch",), "megatron", ("advantage", "metrics"), "KL to the reference, summed over the response"
    ),
    # 5 algorithms
    "advantages": Column(torch.float32, ("batch",), "advantage", ("megatron",), "one number a response"),
}
"""Every column of the project. A new one is added here first."""
