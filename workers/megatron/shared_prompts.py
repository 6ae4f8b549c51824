"""A prompt that several rows of a micro-batch answer is computed once; only attention sees it before each response.

    rows        [p p r r]  [p p r]       two responses to one prompt
    tokens       p p r r    r            what all layers work on
    attention    p p r r  p p r          each response behind its prompt
    sources      0 1 2 3  0 1 4          the token behind each position of attention
    owners       0 1 2 3      6          the position of attention whose output each token takes
    copies               4 5             the positions that no token takes

What attention puts out at a copy is what it puts out at the owner, so neither numbers nor gradients change (Liu et al.
2025, "Prefix Grouper", arXiv 2506.05433). It saves the prompts' share of all that is done a token: products with weights,
norms, activations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cfpo_hybrid.protocol import DataProto


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """The way between the tokens of a micro-batch and the positions of attention; see the module's picture."""

    sources: Int[Tensor, " position"]
    """The token behind each position."""
    owners: Int[Tensor, " packed"]
    """The position of each token."""
    copies: Int[Tensor, " copy"]
    """Positions that own no token."""

    def spread(self, tokens: Float[Tensor, "packed *rest"]) -> Float[Tensor, "position *rest"]:
        """What each position sees of its token."""
        return _Spread.apply(tokens, self)

    def collect(self, positions: Float[Tensor, "position *rest"]) -> Float[Tensor, "packed *rest"]:
        """What each token takes from its position; what stands at a copy is dropped."""
        return gather_rows(positions, self.owners)

    def with_filler(self, count: int) -> "SharedPrompts":
        """With so many more tokens at the end, each a position of its own."""
        behind = torch.arange(count)
        sources = torch.cat([self.sources, len(self.owners) + behind])
        return SharedPrompts(sources, torch.cat([self.owners, len(self.sources) + behind]), self.copies)

    def to(self, device: torch.device) -> "SharedPrompts":
        """The same on another device."""
        return SharedPrompts(self.sources.to(device), self.owners.to(device), self.copies.to(device))


class _Spread(torch.autograd.Function):
    """The gradient of a token is that of its position and of all copies, added in fp32."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        return tokens.index_select(0, shared.sources)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shared: SharedPrompts = ctx.shared
        total = grads[0].index_select(0, shared.owners).float()
        copies = grads[0].index_select(0, shared.copies).float()
        return total.index_add_(0, shared.sources[shared.copies], copies).to(grads[0].dtype), None


def first_with_prompt(batch: DataProto) -> Int[Tensor, " batch"]:
    """The first row with each row's prompt, of the same mini-batch where the batch has any.

    Without ``group_ids`` each row is its own.
    """
    rows = torch.arange(len(batch))
    if "group_ids" not in batch:
        return rows
    _, group = torch.unique(batch["group_ids"], return_inverse=True)
    if "mini_batch" in batch:
        _, stratum = torch.unique(batch["mini_batch"], return_inverse=True)
        _, group = torch.unique(group * len(batch) + stratum, return_inverse=True)
    first = torch.empty_like(rows).scatter_reduce_(0, group, rows, "amin", include_self=False)[group]
    prompts, lengths = batch["prompts"], batch["prompt_lengths"]
    same = (prompts == prompts[first]).all(dim=1) & (lengths == lengths[first])
    return torch.where(same, first, rows)


def share_prompts(
    leaders: Int[Tensor, " row"], prompt_lengths: Int[Tensor, " row"], lengths: Int[Tensor, " row"]
) -> SharedPrompts:
    """How the rows of a micro-batch share their prompts.

    Args:
        leaders: the same number for rows of one prompt, which are neighbours.
        prompt_lengths: tokens of each prompt.
        lengths: tokens of prompt and response.
    """
    row, place = ragged(lengths)
    follows = torch.zeros(len(leaders), dtype=torch.bool)
    follows[1:] = leaders[1:] == leaders[:-1]
    head = torch.where(follows, 0, torch.arange(len(leaders))).cummax(dim=0).values
    is_copy = follows[row] & (place < prompt_lengths[row])
    starts = torch.cumsum(lengths, dim=0) - lengths
    owner = torch.where(is_copy, starts[head[row]] + place, torch.arange(len(place)))
    sources = (torch.cumsum(~is_copy, dim=0) - 1)[owner]
    return SharedPrompts(sources, torch.nonzero(~is_copy).flatten(), torch.nonzero(is_copy).flatten())


def ragged(lengths: Int[Tensor, " row"]) -> tuple[Int[Tensor, " element"], Int[Tensor, " element"]]:
    """For rows of these lengths laid end to end: (row of each element, its place within the row)."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = torch.cumsum(lengths, dim=0) - lengths
    return row, torch.arange(len(row)) - starts[row]


def scatter_rows(
    rows: Float[Tensor, "row *rest"], slots: Int[Tensor, " row"], size: int
) -> Float[Tensor, "{size} *rest"]:
    """A table of ``size`` rows, zero but for ``rows`` in their slots, which are distinct."""
    return _Scatter.apply(rows, slots, size)


def gather_rows(table: Float[Tensor, "slot *rest"], slots: Int[Tensor, " row"]) -> Float[Tensor, "row *rest"]:
    """The rows in these slots: the inverse of :func:`scatter_rows`."""
    return _Gather.apply(table, slots)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].index_select(0, slots), None, None


class _Gather(torch.autograd.Function):
    """Distinct slots need no sum, so the gradient is a copy; torch's own adds atomically and is far slower."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = table.shape[0]
        return table.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.size, *grads[0].shape[1:]).index_copy_(0, slots, grads[0]), None
