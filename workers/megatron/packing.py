"""Rows of a batch -> packed micro-batches: real tokens only, one row after the other, cut by a token budget.

    rows       [p p p r r]  [p p r r r r]          p = prompt token, r = response token
    tokens      p p p r r    p p r r r r  (x)      x = filler up to a multiple of tp, for sequence parallelism
    predictors      ^ ^        ^ ^ ^ ^             tokens whose hidden state predicts a response token

Rows of one group follow each other, and their prompt is packed once: see :mod:`workers.megatron.shared_prompts`. Which
rows form a micro-batch depends on their lengths, groups and order alone, so that ``log_probs`` and ``update`` of the same
rows compute the same numbers, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.protocol import DataProto
from workers.megatron.row_index import ragged
from workers.megatron.shared_prompts import SharedPrompts, first_with_prompt, share_prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """The packed tokens of a few rows.

    Args:
        tokens: ``[token]`` ids of prompt and response, with filler at the end.
        lengths: prompt and response tokens of each row; the filler counts as the last row's tail, which nothing looks at.
        predictors: ``[response token]`` index into ``tokens``: whose hidden state predicts it.
        targets: ``[response token]`` ids.
        sequence_ids: ``[response token]`` row within the micro-batch, from 0.
        cells: ``[response token]`` place in a flattened padded ``[batch, response]`` column.
        rows: ``[row]`` index of each row in the batch.
        shared: how attention sees prompts that several rows have in common; None when there are none.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    predictors: Tensor
    targets: Tensor
    sequence_ids: Tensor
    cells: Tensor
    rows: Tensor
    shared: SharedPrompts | None = None

    def pick(self, column: Tensor) -> Tensor:
        """The response tokens' values of a padded ``[batch, response]`` or a ``[batch]`` column, packed."""
        if column.dim() == 1:
            return column[self.rows][self.sequence_ids]
        return column.reshape(-1)[self.cells]


def pack(batch: DataProto, *, max_tokens: int, multiple: int, device: torch.device) -> list[MicroBatch]:
    """Cuts a batch into packed micro-batches.

    Args:
        batch: with prompts, responses and their lengths; where it has ``mini_batch``, no micro-batch mixes two of them.
        max_tokens: token budget of a micro-batch, shared prompts counted in each row; a longer row gets one of its own.
        multiple: packed lengths are filled up to a multiple of this.
        device: where the micro-batches shall be.
    """
    strata = batch["mini_batch"] if "mini_batch" in batch else None
    leaders = first_with_prompt(batch)
    plan = plan_micro_batches(batch.num_tokens, max_tokens, leaders, strata)
    columns = {name: batch[name] for name in ("prompts", "prompt_lengths", "responses", "response_lengths")}
    return [_pack_rows(columns, rows, leaders[rows], multiple, device) for rows in plan]


def idle_micro_batch(batch: DataProto, *, multiple: int, device: torch.device) -> MicroBatch:
    """One of filler alone, for a rank that has no rows left while its peers' tokens still need its experts."""
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(
        tokens=torch.zeros(multiple, dtype=batch["responses"].dtype, device=device),
        lengths=(multiple,),
        predictors=nothing,
        targets=nothing,
        sequence_ids=nothing,
        cells=nothing,
        rows=nothing,
    )


def plan_micro_batches(
    num_tokens: Tensor, max_tokens: int, leaders: Tensor | None = None, strata: Tensor | None = None
) -> list[Tensor]:
    """Row indices of each micro-batch: the groups with the longest rows first, and in each the longest row.

    Rows of like length go together, which wastes least where attention pads them.

    Args:
        num_tokens: ``[batch]`` tokens of each row.
        max_tokens: budget.
        leaders: ``[batch]`` the same row for all rows of a group; by default each row is a group.
        strata: ``[batch]`` labels that may not be mixed; handled in ascending order. No group has rows of two.

    Example: tokens [3, 9, 4, 5], budget 9 -> rows [1], [3, 2], [0].
    """
    order = torch.argsort(num_tokens, descending=True, stable=True)
    if leaders is not None:
        longest = torch.zeros_like(num_tokens).scatter_reduce_(0, leaders, num_tokens, "amax")[leaders]
        order = order[torch.argsort(leaders[order], stable=True)]
        order = order[torch.argsort(longest[order], descending=True, stable=True)]
    if strata is not None:
        order = order[torch.argsort(strata[order], stable=True)]
    sizes = num_tokens[order].tolist()
    labels = strata[order].tolist() if strata is not None else [0] * len(sizes)
    starts: list[int] = []
    room, label = 0, None
    for place, size in enumerate(sizes):
        if size > room or labels[place] != label:
            starts.append(place)
            room, label = max_tokens, labels[place]
        room -= size
    return list(torch.tensor_split(order, starts[1:])) if starts else []


def unpack(
    micro_batches: Sequence[MicroBatch], values: Sequence[Tensor], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Packed ``[k, response token]`` values back into padded fp32 columns ``[k, batch, response]``, 0 in the padding.

    Without values (a stage that computes none) all is 0.
    """
    padded = torch.zeros(shape[0], shape[1] * shape[2], dtype=torch.float32, device=device)
    for micro_batch, packed in zip(micro_batches, values, strict=bool(values)):
        padded[:, micro_batch.cells] = packed
    return padded.view(shape)


def _pack_rows(
    columns: dict[str, Tensor], rows: Tensor, leaders: Tensor, multiple: int, device: torch.device
) -> MicroBatch:
    prompt_lengths, response_lengths = columns["prompt_lengths"][rows], columns["response_lengths"][rows]
    lengths = prompt_lengths + response_lengths
    sequence_of_position, place = ragged(lengths)
    offset = place - prompt_lengths[sequence_of_position]
    # One table of prompt and response columns side by side, read at the place of each real token.
    table = torch.cat([columns["prompts"][rows], columns["responses"][rows]], dim=1)
    column = torch.where(offset < 0, place, columns["prompts"].shape[1] + offset)
    shared = share_prompts(leaders, prompt_lengths, lengths)
    tokens = table[sequence_of_position, column][shared.owners]
    filler = -len(tokens) % multiple
    row_lengths = lengths.tolist()
    row_lengths[-1] += filler

    sequence_ids, response_place = ragged(response_lengths)
    first = torch.cumsum(lengths, dim=0) - response_lengths
    width = columns["responses"].shape[1]
    return MicroBatch(
        tokens=torch.nn.functional.pad(tokens, (0, filler)).to(device),
        lengths=tuple(row_lengths),
        predictors=shared.sources[first[sequence_ids] + response_place - 1].to(device),
        targets=columns["responses"][rows[sequence_ids], response_place].to(device),
        sequence_ids=sequence_ids.to(device),
        cells=(rows[sequence_ids] * width + response_place).to(device),
        rows=rows.to(device),
        shared=shared.with_filler(filler).to(device) if len(shared.copies) else None,
    )
