"""Shard specs of a Megatron-core rank: its local parameters under the names of ``GPTModel.named_parameters()``.

Layers are numbered from 0 on each pipeline stage (``decoder.layers.{local}``), or in each chunk of a stage that has
several (``chunk1.decoder.layers.{local}``). ``linear_qkv`` interleaves by query group: its rows are [q of group 0, k 0,
v 0, q of group 1, k 1, v 1, ...], cut evenly over tensor-parallel ranks, also where there are fewer groups than ranks.
With tied embeddings and several stages the last one holds a copy of the embedding as ``output_layer.weight``. Experts
are not cut: each rank of an expert-parallel group has its share of them whole, numbered from 0.
"""

from collections.abc import Sequence

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.families import EMBEDDING, FAMILIES, LM_HEAD, Role
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.models.shards import (
    Share,
    Stack,
    check_divides,
    cut_evenly,
    equal_part,
    experts_of,
    final_norm,
    hf_names,
    round_up,
    stacked,
    tensor_areas,
    vocabulary_shard,
)
from cfpo_hybrid.models.stages import EQUAL_STAGES, PipelineCut, pipeline_layers
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from cfpo_hybrid.resharding.shard_spec import Rectangle, ShardSpec

EMBEDDING_NAME = "embedding.word_embeddings.weight"
FINAL_NORM_NAME = "decoder.final_layernorm.weight"
OUTPUT_NAME = "output_layer.weight"

VOCABULARY_ROWS = 8
"""A tensor-parallel rank's embedding rows are a multiple of this: 16 bytes of bf16, which tensor cores like.

Megatron-LM's own 128 would make the tiny vocabularies of tests mostly padding.
"""


def megatron_specs(
    shape: ModelShape,
    layout: ParallelLayout,
    coordinate: Coordinate,
    cut: PipelineCut = EQUAL_STAGES,
) -> list[ShardSpec]:
    """The parameters of the rank at ``coordinate``.

    Raises:
        ModelError: the model does not divide over tp, or its experts not over ep.
        ConfigError: its layers do not divide over pp, or a stage's over its chunks.
    """
    check_divides(shape, layout.tp, "Megatron")
    check_experts_divide(shape, layout.ep)
    tp, ep = (coordinate.tp, layout.tp), (layout.expert_rank(coordinate), layout.ep)
    rows = padded_vocab_size(shape.vocab_size, layout.tp)
    chunks = pipeline_layers(shape.num_layers, layout.pp, cut)[coordinate.pp]
    prefixes = [chunk_prefix(chunk, len(chunks)) for chunk in range(len(chunks))]
    table = [(parameter, _stack(parameter.role, shape, tp)) for parameter in FAMILIES.get(shape.family).layer]
    specs = []
    if coordinate.pp == 0:
        specs.append(vocabulary_shard(prefixes[0] + EMBEDDING_NAME, EMBEDDING, shape, rows, tp))
    for prefix, layers in zip(prefixes, chunks, strict=True):
        for local, layer in enumerate(layers):
            for parameter, stack in table:
                name = f"{prefix}decoder.layers.{local}.{parameter.megatron}"
                for number, expert in enumerate(_own_experts(parameter.role, shape, ep)):
                    names = hf_names(parameter, layer, [expert])
                    specs.append(stacked(name.replace("{expert}", str(number)), names, stack))
    if coordinate.pp == layout.pp - 1:
        specs.append(final_norm(prefixes[-1] + FINAL_NORM_NAME, shape))
        if layout.pp > 1 or not shape.tied_embeddings:
            head = EMBEDDING if shape.tied_embeddings else LM_HEAD
            specs.append(vocabulary_shard(prefixes[-1] + OUTPUT_NAME, head, shape, rows, tp))
    return specs


def chunk_prefix(chunk: int, num_chunks: int) -> str:
    """What stands before the names of a chunk's parameters, to tell them from those of the rank's other chunks."""
    return f"chunk{chunk}." if num_chunks > 1 else ""


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of Megatron's whole embedding: the smallest multiple of ``8 * tp`` that holds the vocabulary.

    Example: ``padded_vocab_size(100, 2) == 112``.
    """
    return round_up(vocab_size, VOCABULARY_ROWS * tp)


def check_experts_divide(shape: ModelShape, ep: int) -> None:
    """Refuses an expert-parallel size that does not divide the model's experts.

    Raises:
        ModelError: it does not, or the model has none.
    """
    count = shape.experts.count if shape.experts else 1
    if count % ep:
        legal = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
        raise ModelError(
            f"expert parallel size {ep} does not divide the model's {count} experts per layer; sizes that do: {legal}"
            if shape.experts
            else f"expert parallel size {ep} needs a mixture of experts; {shape.family} models have none, set it to 1"
        )


def _own_experts(role: Role, shape: ModelShape, ep: Share) -> range:
    """A rank's share of the experts that have such a parameter; what is not an expert's is not shared out."""
    experts, (rank, size) = experts_of(role, shape), ep
    count = len(experts) // size
    return experts[rank * count : (rank + 1) * count] if role.is_experts else experts


def _stack(role: Role, shape: ModelShape, tp: Share) -> Stack:
    """What a rank has of a row of the table; of an expert all."""
    if role.is_qkv:
        return _interleaved(tensor_areas(role, shape), shape.num_kv_heads, tp)
    return list(enumerate(tensor_areas(role, shape) if role.is_experts else cut_evenly(role, shape, tp)))


def _interleaved(areas: Sequence[Rectangle], groups: int, tp: Share) -> Stack:
    """A rank's equal part of the rows [q of group 0, k 0, v 0, q of group 1, ...]."""
    rank, size = tp
    count, rest = divmod(sum(area.size[0] for area in areas), size)
    if rest:
        raise ModelError(
            f"{count * size + rest} rows of query, key and value do not divide by tensor parallel size {size}"
        )
    found, top, first = [], 0, rank * count
    for group in range(groups):
        for number, area in enumerate(areas):
            part = equal_part(area, 0, (group, groups))
            begin, end = max(first, top), min(first + count, top + part.size[0])
            if begin < end:
                found.append((number, part.along(0, begin - top, end - begin)))
            top += part.size[0]
    return found
