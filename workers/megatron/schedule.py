"""Runs packed micro-batches through Megatron-core's schedules: plain, or (interleaved) 1F1B over pipeline stages.

Megatron-core rescales losses in two places, by the number of micro-batches and by dp; ours carry global denominators
and must reach the gradients untouched. So ``calculate_per_token_loss`` is on (which turns both off), the loss function
answers with the three-tuple form, and gradients are finalised here without a token count.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from workers.megatron.build import Chunks, PolicyModel, unwrapped
from workers.megatron.packing import MicroBatch
from workers.megatron.parallel import ParallelGroups

Result = TypeVar("Result")
OnStates = Callable[[MicroBatch, Tensor, Tensor], tuple[Tensor, Result]]
"""(micro-batch, hidden states ``[token, hidden]`` that predict its response tokens, weight of the head) -> (scalar to
minimise, anything to keep)."""


def with_idle(
    micro_batches: list[MicroBatch], idle: MicroBatch, groups: ParallelGroups, chunks: int
) -> list[MicroBatch]:
    """With idle ones at the end, where a rank's peers or the schedule need more than its rows fill."""
    count = len(micro_batches)
    if groups.layout.ep > 1:
        # Experts are called by all dp ranks together, so all run the same number.
        most = torch.tensor(count, device=idle.tokens.device)
        dist.all_reduce(most, dist.ReduceOp.MAX, groups.dp)
        count = int(most)
    # Megatron-core's interleaved schedule goes through the chunks with a group of as many as there are stages.
    group = groups.layout.pp if chunks > 1 else 1
    return micro_batches + [idle] * (-(-count // group) * group - len(micro_batches))


def run_forward(chunks: Chunks, micro_batches: Sequence[MicroBatch], on_states: OnStates[Result]) -> list[Result]:
    """What ``on_states`` kept of each micro-batch, without gradients; empty on all stages but the last."""
    with torch.no_grad():
        return _run(chunks, micro_batches, on_states, forward_only=True)


def run_forward_backward(
    chunks: list[DistributedDataParallel], micro_batches: Sequence[MicroBatch], on_states: OnStates[Result]
) -> list[Result]:
    """As :func:`run_forward`, and adds the gradients of all micro-batches and dp ranks into the gradient buffers.

    Collective over the world: a rank without micro-batches takes part in the reduction.
    """
    kept = _run(chunks, micro_batches, on_states, forward_only=False)
    finalize_model_grads([*chunks], num_tokens=None)
    return kept


def _run(
    chunks: Chunks,
    micro_batches: Sequence[MicroBatch],
    on_states: OnStates[Result],
    *,
    forward_only: bool,
) -> list[Result]:
    if not micro_batches:  # Megatron-core's schedules always run at least one; all ranks of a replica agree on this
        return []

    def forward_step(batches: Iterator[MicroBatch], module: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro_batch = next(batches)
        policy = unwrapped(module)
        hidden = module(
            input_ids=micro_batch.tokens.unsqueeze(0),
            position_ids=None,
            attention_mask=None,
            packed_seq_params=policy.rotary.sequences(micro_batch.lengths, micro_batch.shared),
        )
        return hidden, partial(_finish, on_states, policy, micro_batch)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(micro_batches) for _ in chunks],  # every chunk sees all of them
        model=list(chunks),
        num_microbatches=len(micro_batches),
        seq_length=0,  # shapes travel with the tensors
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _finish(
    on_states: OnStates[Result], model: PolicyModel, micro_batch: MicroBatch, hidden: Tensor
) -> tuple[Tensor, Tensor, Result]:
    """Last stage: hidden states ``[packed / sp, 1, hidden]`` -> (loss, an unused token count, what is kept).

    States that predict response tokens come to every tp rank, and their gradient is summed over tp.
    """
    if model.config.sequence_parallel:
        states = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        predicting = states.squeeze(1)[micro_batch.predictors]
    else:
        predicting = copy_to_tensor_model_parallel_region(hidden.squeeze(1)[micro_batch.predictors])
    loss, kept = on_states(micro_batch, predicting, model.head_weight)
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), kept
