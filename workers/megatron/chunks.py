"""A rank's model as a list of chunks: mostly one, several where its pipeline stage is cut into them."""

from collections.abc import Iterator, Sequence

from megatron.core.distributed import DistributedDataParallel
from torch import nn

from cfpo_hybrid.models.megatron_specs import chunk_prefix
from workers.megatron.build import PolicyModel

Chunks = Sequence[PolicyModel] | Sequence[DistributedDataParallel]


def unwrapped(chunk: nn.Module) -> PolicyModel:
    """The model inside its data-parallel wrapper."""
    inner = chunk.module if isinstance(chunk, DistributedDataParallel) else chunk
    assert isinstance(inner, PolicyModel)
    return inner


def named_parameters(chunks: Chunks) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all chunks under the names of their shard specs."""
    for number, chunk in enumerate(chunks):
        for name, parameter in unwrapped(chunk).named_parameters():
            yield chunk_prefix(number, len(chunks)) + name, parameter
