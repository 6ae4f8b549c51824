"""Shard specs of a Megatron-core rank: its local parameters under the names of ``GPTModel.named_parameters()``.

Layers are numbered from 0 on each pipeline stage (``decoder.layers.{local}``), or in each chunk of a stage that has
several (``chunk1.decoder.layers.{local}``). ``linear_qkv`` interleaves by query group: its rows are [q of group 0, k 0,
v 0, q of group 1, k 1, v 1, ...], cut evenly over tensor-parallel ranks, also where there are fewer groups than ranks.
With tied embeddings and several stages the last one holds a copy of the embedding as ``output_layer.weight``. Experts
are not cut: each rank of an expert-parallel group has its share of them whole, numbered from 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.family import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, LayerParameter, Role
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.models.shards import (
    Rows,
    check_divides,
    experts_of,
    hf_layer_names,
    layer_parameter,
    stacked,
    vocabulary_shard,
)
from cfpo_hybrid.models.stages import EQUAL_STAGES, PipelineCut, pipeline_layers
from cfpo_hybrid.models.vocab import padded_vocab_size
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from cfpo_hybrid.resharding.shard_spec import ShardSpec

EMBEDDING_NAME = "embedding.word_embeddings.weight"
FINAL_NORM_NAME = "decoder.final_layernorm.weight"
OUTPUT_NAME = "output_layer.weight"


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
    chunks = pipeline_layers(shape.num_layers, layout.pp, cut)[coordinate.pp]
    rows = padded_vocab_size(shape.vocab_size, layout.tp) // layout.tp
    vocabulary = (coordinate.tp * rows, rows)
    share = _Share(tp=(coordinate.tp, layout.tp), ep=(layout.expert_rank(coordinate), layout.ep))
    prefixes = [chunk_prefix(chunk, len(chunks)) for chunk in range(len(chunks))]
    specs = []
    if coordinate.pp == 0:
        specs.append(vocabulary_shard(prefixes[0] + EMBEDDING_NAME, EMBEDDING, shape, vocabulary))
    for prefix, layers in zip(prefixes, chunks, strict=True):
        for local, layer in enumerate(layers):
            for parameter in FAMILIES.get(shape.family).layer:
                name = f"{prefix}decoder.layers.{local}.{parameter.megatron}"
                specs.extend(_layer_specs(parameter, name, layer, shape, share))
    if coordinate.pp == layout.pp - 1:
        specs.append(stacked(prefixes[-1] + FINAL_NORM_NAME, [Rows(FINAL_NORM, 0, shape.hidden_size)], None))
        if layout.pp > 1 or not shape.tied_embeddings:
            head = EMBEDDING if shape.tied_embeddings else LM_HEAD
            specs.append(vocabulary_shard(prefixes[-1] + OUTPUT_NAME, head, shape, vocabulary))
    return specs


def chunk_prefix(chunk: int, num_chunks: int) -> str:
    """What stands before the names of a chunk's parameters, to tell them from those of the rank's other chunks."""
    return f"chunk{chunk}." if num_chunks > 1 else ""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """A rank's (rank, size) in its tensor-parallel and in its expert-parallel group."""

    tp: tuple[int, int]
    ep: tuple[int, int]


def _layer_specs(
    parameter: LayerParameter, name: str, layer: int, shape: ModelShape, share: _Share
) -> Iterator[ShardSpec]:
    """A table's row in the layer with this global number; ``name`` is Megatron's of the parameter."""
    match parameter.role:
        case Role.QKV | Role.QKV_BIAS:
            yield _qkv(parameter, name, hf_layer_names(parameter, layer), shape, share.tp)
        case Role.EXPERT_GATE_UP | Role.EXPERT_DOWN:
            experts, (rank, size) = experts_of(parameter, shape), share.ep
            count = len(experts) // size
            for number, expert in enumerate(experts[rank * count : (rank + 1) * count]):
                hf_names = hf_layer_names(parameter, layer, expert)
                yield _expert(parameter, name.replace("{expert}", str(number)), hf_names, shape)
        case _:
            yield layer_parameter(parameter, name, hf_layer_names(parameter, layer), shape, share.tp)


def _expert(parameter: LayerParameter, name: str, hf_names: Sequence[str], shape: ModelShape) -> ShardSpec:
    """A whole expert's gate above its up, or its down."""
    assert shape.experts is not None
    width = shape.experts.intermediate_size
    if parameter.role is Role.EXPERT_GATE_UP:
        return stacked(name, [Rows(hf_name, 0, width) for hf_name in hf_names], (0, shape.hidden_size))
    return stacked(name, [Rows(hf_names[0], 0, shape.hidden_size)], (0, width))


def _qkv(
    parameter: LayerParameter, name: str, hf_names: Sequence[str], shape: ModelShape, tp: tuple[int, int]
) -> ShardSpec:
    query, key, value = hf_names
    queries = shape.query_size // shape.num_kv_heads
    interleaved = [
        part
        for group in range(shape.num_kv_heads)
        for part in (
            Rows(query, group * queries, queries),
            Rows(key, group * shape.head_dim, shape.head_dim),
            Rows(value, group * shape.head_dim, shape.head_dim),
        )
    ]
    total = shape.query_size + 2 * shape.kv_size
    rank, size = tp
    if total % size:
        raise ModelError(f"{total} rows of query, key and value do not divide by tensor parallel size {size}")
    count = total // size
    columns = None if parameter.role is Role.QKV_BIAS else (0, shape.hidden_size)
    return stacked(name, list(_window(interleaved, rank * count, count)), columns)


def _window(parts: Sequence[Rows], first: int, count: int) -> Iterator[Rows]:
    """Rows ``[first, first + count)`` of the stack that the parts form."""
    top = 0
    for part in parts:
        begin, end = max(first, top), min(first + count, top + part.number)
        if begin < end:
            yield Rows(part.hf_name, part.first + begin - top, end - begin)
        top += part.number
