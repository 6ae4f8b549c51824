"""Attention over packed sequences: rotary positions, then one of three kernels.

Megatron-core's own ``DotProductAttention`` refuses packed sequences, and its rotary code rebuilds cosines and sines for
every layer, query and key. Here :class:`PackedSequences` carries both tables through the layers, computed once a
micro-batch, and Megatron's layer spec takes :class:`PackedAttention` as the core attention.

    kernel         where                what it needs
    flash_attn     CUDA, bf16 or fp16   the flash-attn package
    torch_varlen   CUDA, bf16 or fp16   torch.nn.attention.varlen
    sdpa           anywhere             nothing; rows are padded to the longest of the micro-batch
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import ModelShape
from workers.megatron.shared_prompts import SharedPrompts, gather_rows, ragged, scatter_rows

Kernel = Callable[[Tensor, Tensor, Tensor, "PackedSequences"], Tensor]
"""(query ``[position, head, head_dim]``, key and value ``[position, kv_head, head_dim]``, sequences) -> like the query."""


@dataclass(kw_only=True)
class PackedSequences(PackedSeqParams):
    """What every layer needs to know of the sequences in a micro-batch.

    Args:
        lengths: positions of each sequence.
        cos: of each token's position and each frequency.
        sin: likewise.
        slots: place of each position when sequences are padded to the longest; None when all are equally long.
        shared: how prompts that several sequences have in common become positions of each; None when there are none, and
            every token is a position.
    """

    lengths: tuple[int, ...]
    cos: Float[Tensor, "packed 1 frequency"]
    sin: Float[Tensor, "packed 1 frequency"]
    slots: Int[Tensor, " position"] | None = None
    shared: SharedPrompts | None = None


class Rotary:
    """Makes :class:`PackedSequences` for a model: knows its rotary frequencies.

    theta_i = rope_theta^(-2i / head_dim) (Su et al. 2021, "RoFormer", equation 15); Llama 3.1 divides the low ones.

    Args:
        shape: the model's.
        dtype: of the tables, as Hugging Face's models round them.
        device: of the tables.
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, device: torch.device) -> None:
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        self.frequencies = _scaled(1.0 / shape.rope_theta**exponents, shape).to(device)
        self.dtype, self.device = dtype, device

    def sequences(self, lengths: tuple[int, ...], shared: SharedPrompts | None = None) -> PackedSequences:
        """The tables for sequences of these lengths, packed in this order."""
        counts = torch.tensor(lengths, dtype=torch.int64)
        row, place = ragged(counts)
        places = place.to(self.device, torch.float32)
        angles = torch.outer(places if shared is None else places[shared.owners], self.frequencies)
        longest = max(lengths)
        uneven = min(lengths) != longest
        bounds = F.pad(counts.cumsum(dim=0), (1, 0)).to(self.device, torch.int32)
        return PackedSequences(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            lengths=lengths,
            cos=angles.cos().to(self.dtype).unsqueeze(1),
            sin=angles.sin().to(self.dtype).unsqueeze(1),
            slots=(row * longest + place).to(self.device) if uneven else None,
            shared=shared,
        )


class PackedAttention(nn.Module):
    """Causal attention within each packed sequence, in the place of Megatron's core attention.

    Args:
        kernel: does the work after the rotation.
    """

    def __init__(self, *, kernel: Kernel, **_: Any) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(
        self,
        query: Float[Tensor, "packed head head_dim"],
        key: Float[Tensor, "packed kv_head head_dim"],
        value: Float[Tensor, "packed kv_head head_dim"],
        *_: Any,
        packed_seq_params: PackedSequences,
        **__: Any,
    ) -> Float[Tensor, "packed head head_dim"]:
        """Rotates query and key, and attends."""
        sequences, shared = packed_seq_params, packed_seq_params.shared
        query = _Rotate.apply(query, sequences.cos, sequences.sin)
        key = _Rotate.apply(key, sequences.cos, sequences.sin)
        if shared is None:
            return self.kernel(query, key, value, sequences)
        return shared.collect(self.kernel(shared.spread(query), shared.spread(key), shared.spread(value), sequences))


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel of ``actor.attention``; "auto" takes the first that this machine has.

    Raises:
        ConfigError: an unknown name, or a kernel that this machine lacks.
    """
    kernels = {"flash_attn": _flash_attention, "torch_varlen": _torch_varlen, "sdpa": _padded_sdpa}
    on_cuda = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    missing = {
        "flash_attn": not on_cuda or importlib.util.find_spec("flash_attn") is None,
        "torch_varlen": not on_cuda or importlib.util.find_spec("torch.nn.attention.varlen") is None,
        "sdpa": False,
    }
    if name == "auto":
        name = next(known for known in kernels if not missing[known])
    if name not in kernels:
        raise ConfigError(f"actor.attention={name!r} is unknown; use auto, {', '.join(kernels)}")
    if missing[name]:
        raise ConfigError(f"actor.attention={name!r} does not run on {device.type} in {dtype}; use auto or sdpa")
    return kernels[name]


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    bounds, longest = sequences.cu_seqlens_q, sequences.max_seqlen_q
    return flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, causal=True)


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = sequences.cu_seqlens_q, sequences.max_seqlen_q
    causal = (-1, 0)  # every key to the left, none to the right
    return cast(
        Tensor,
        varlen_attn(
            query, key, value.contiguous(), bounds, bounds, longest, longest, window_size=causal, enable_gqa=True
        ),
    )


def _padded_sdpa(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences) -> Tensor:
    """One call for all rows: padding is on the right, where a causal mask already hides it from every real token."""
    shape = (len(sequences.lengths), sequences.max_seqlen_q)
    queries, keys, values = (_pad(tensor, sequences.slots, shape).transpose(1, 2) for tensor in (query, key, value))
    enable_gqa = query.shape[1] != key.shape[1]
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=enable_gqa)
    flat = attended.transpose(1, 2).reshape(shape[0] * shape[1], *query.shape[1:])
    return flat if sequences.slots is None else gather_rows(flat, sequences.slots)


def _pad(packed: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if slots is not None:
        packed = scatter_rows(packed, slots, shape[0] * shape[1])
    return packed.reshape(*shape, *packed.shape[1:])


class _Rotate(torch.autograd.Function):
    """Rotates the pairs (x_i, x_{i + dim/2}) by each token's angles; the gradient rotates back."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(vectors, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, -1), None, None


def _rotate(vectors: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    first, second = vectors.chunk(2, dim=-1)
    rotated = torch.empty(vectors.shape, dtype=vectors.dtype, device=vectors.device)
    left, right = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sign)
    return rotated


def _scaled(frequencies: Tensor, shape: ModelShape) -> Tensor:
    """Llama 3.1's stretch: long wavelengths divided by ``factor``, short ones kept, a ramp between them."""
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept
