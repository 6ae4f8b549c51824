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
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor

from cfpo_hybrid.protocol import DataProto
from workers.megatron.shared_prompts import SharedPrompts, first_with_prompt, ragged, share_prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """The packed tokens of a few rows.

    Args:
        tokens: ids of prompts and responses, with filler at the end.
        lengths: prompt and response tokens of each row; the filler counts as the last row's tail, which nothing looks at.
        predictors: index into ``tokens`` for each response token: whose hidden state predicts it.
        targets: ids of the response tokens.
        sequence_ids: row of each response token within the micro-batch, from 0.
        cells: place of each response token in a flattened padded column.
        rows: index of each row in the batch.
        shared: how attention sees prompts that several rows have in common; None when there are none.
    """

    tokens: Int[Tensor, " packed"]
    lengths: tuple[int, ...]
    predictors: Int[Tensor, " token"]
    targets: Int[Tensor, " token"]
    sequence_ids: Int[Tensor, " token"]
    cells: Int[Tensor, " token"]
    rows: Int[Tensor, " row"]
    shared: SharedPrompts | None = None

    def pick(self, column: Shaped[Tensor, "batch response"]) -> Shaped[Tensor, " token"]:
        """The response tokens' values of a padded column, which may be a view."""
        return column.take(self.cells)


def pack(batch: DataProto, *, max_tokens: int, multiple: int, device: torch.device) -> list[MicroBatch]:
    """Cuts a batch into packed micro-batches.

    Args:
        batch: with prompts, responses and their lengths; where it has ``mini_batch``, no micro-batch mixes two of them.
        max_tokens: token budget of a micro-batch, shared prompts counted in each row; a longer row gets one of its own.
        multiple: packed lengths are filled up to a multiple of this.
        device: where the micro-batches shall be.
    """
    leaders, num_tokens = first_with_prompt(batch), batch.num_tokens
    strata = batch["mini_batch"] if "mini_batch" in batch else torch.zeros_like(leaders)
    plan = plan_micro_batches(num_tokens, leaders, strata, max_tokens)
    columns = {name: batch[name] for name in ("prompts", "prompt_lengths", "responses", "response_lengths")}
    return [_pack_rows(columns, rows, leaders[rows], multiple, device) for rows in plan]


def idle_micro_batch(multiple: int, device: torch.device) -> MicroBatch:
    """One of filler alone, for a rank that has no rows left while its peers' tokens still need its experts."""
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(
        tokens=torch.zeros(multiple, dtype=torch.int64, device=device),
        lengths=(multiple,),
        predictors=nothing,
        targets=nothing,
        sequence_ids=nothing,
        cells=nothing,
        rows=nothing,
    )


def plan_micro_batches(
    num_tokens: Int[Tensor, " batch"], leaders: Int[Tensor, " batch"], strata: Int[Tensor, " batch"], max_tokens: int
) -> list[Int[Tensor, " _"]]:
    """Row indices of each micro-batch: the groups with the longest rows first, and in each the longest row.

    Rows of like length go together, which wastes least where attention pads them.

    Args:
        num_tokens: tokens of each row.
        leaders: the same row for all rows of a group.
        strata: labels that may not be mixed; handled in ascending order. No group has rows of two.
        max_tokens: budget of a micro-batch.

    Example: rows of [3, 9, 4, 5] tokens, each its own leader, and a budget of 9 -> rows [1], [3, 2], [0].
    """
    order = torch.argsort(num_tokens, descending=True, stable=True)
    longest = torch.zeros_like(num_tokens).scatter_reduce_(0, leaders, num_tokens, "amax")[leaders]
    order = order[torch.argsort(leaders[order], stable=True)]
    order = order[torch.argsort(longest[order], descending=True, stable=True)]
    order = order[torch.argsort(strata[order], stable=True)]
    starts: list[int] = []
    room, label = 0, None
    for place, (size, stratum) in enumerate(zip(num_tokens[order].tolist(), strata[order].tolist(), strict=True)):
        if size > room or stratum != label:
            starts.append(place)
            room, label = max_tokens, stratum
        room -= size
    return list(torch.tensor_split(order, starts[1:])) if starts else []


def unpack(
    micro_batches: Sequence[MicroBatch],
    values: Sequence[Float[Tensor, "column _"]],
    shape: tuple[int, int, int],
    device: torch.device,
) -> Float32[Tensor, "column batch response"]:
    """The inverse of ``pick`` for some columns at once, 0 in the padding.

    Args:
        micro_batches: of all rows.
        values: of the response tokens of each micro-batch; none on a stage that computes none, and all is 0.
        shape: of the answer.
        device: of the answer.
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
