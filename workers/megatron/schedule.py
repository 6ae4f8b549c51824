"""Runs packed micro-batches through Megatron-core's schedules: plain, or (interleaved) 1F1B over pipeline stages.

Megatron-core rescales losses in two places, by the number of micro-batches and by dp; ours carry global denominators
and must reach the gradients untouched. So ``calculate_per_token_loss`` is on (which turns both off), the loss function
answers with the three-tuple form, and gradients are finalised here without a token count.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from workers.megatron.build import PolicyModel
from workers.megatron.chunks import Chunks, unwrapped
from workers.megatron.log_probs import Head, vocabulary_log_probs
from workers.megatron.packing import MicroBatch

Result = TypeVar("Result")
OnLogProbs = Callable[..., tuple[Tensor, Result]]
"""(micro-batch, log-probs ``[token]``, entropy ``[token]``) -> (scalar to minimise, anything to keep); a measure that
gives more passes more."""
Measure = Callable[[Tensor, Tensor, Tensor, Head], tuple[Tensor, ...]]
"""(hidden ``[token, hidden]``, weight of the head, targets ``[token]``, head) -> log-probs, entropy and maybe more."""


def run_forward(
    chunks: Chunks,
    micro_batches: Sequence[MicroBatch],
    head: Head,
    on_log_probs: OnLogProbs[Result],
    measure: Measure = vocabulary_log_probs,
) -> list[Result]:
    """What ``on_log_probs`` kept of each micro-batch, without gradients; empty on all stages but the last."""
    with torch.no_grad():
        return _run(chunks, micro_batches, partial(_finish, head, on_log_probs, measure), forward_only=True)


def run_forward_backward(
    chunks: list[DistributedDataParallel],
    micro_batches: Sequence[MicroBatch],
    head: Head,
    on_log_probs: OnLogProbs[Result],
) -> list[Result]:
    """As :func:`run_forward`, and adds the gradients of all micro-batches and dp ranks into the gradient buffers.

    Collective over the world: a rank without micro-batches takes part in the reduction.
    """
    finish = partial(_finish, head, on_log_probs, vocabulary_log_probs)
    kept = _run(chunks, micro_batches, finish, forward_only=False)
    finalize_model_grads([*chunks], num_tokens=None)
    return kept


def _run(
    chunks: Chunks,
    micro_batches: Sequence[MicroBatch],
    finish: Callable[[PolicyModel, MicroBatch, Tensor], tuple[Tensor, Tensor, Result]],
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
        return hidden, partial(finish, policy, micro_batch)

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
    head: Head,
    on_log_probs: OnLogProbs[Result],
    measure: Measure,
    model: PolicyModel,
    micro_batch: MicroBatch,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Result]:
    """Last stage: hidden states ``[token / sp, 1, hidden]`` -> (loss, an unused token count, what is kept)."""
    predicting = _predicting_states(hidden, micro_batch.predictors, model.config.sequence_parallel)
    measured = measure(predicting, model.head_weight, micro_batch.targets, head)
    loss, kept = on_log_probs(micro_batch, *measured)
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), kept


def _predicting_states(hidden: Tensor, predictors: Tensor, sequence_parallel: bool) -> Tensor:
    """Hidden states that predict response tokens, on every tp rank; their gradient is summed over tp."""
    if sequence_parallel:
        return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True).squeeze(1)[predictors]
    return copy_to_tensor_model_parallel_region(hidden.squeeze(1)[predictors])
