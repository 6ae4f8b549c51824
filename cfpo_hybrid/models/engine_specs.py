"""Shard specs of a rank of either engine: its local parameters, under its engine's names. Pure.

Megatron-core: the names of ``GPTModel.named_parameters()``. Layers are numbered from 0 on each pipeline stage
(``decoder.layers.{local}``), or in each chunk of a stage that has several (``chunk1.decoder.layers.{local}``).
``linear_qkv`` interleaves by query group: its rows are [q of group 0, k 0, v 0, q of group 1, k 1, v 1, ...], cut evenly
over tensor-parallel ranks, also where there are fewer groups than ranks. With tied embeddings and several stages the last
one holds a copy of the embedding as ``output_layer.weight``. Experts are not cut: each rank of an expert-parallel group has
its share of them whole, numbered from 0.

vLLM: the fused parameters of its model under ``named_parameters()``. ``qkv_proj`` stacks the rank's query rows over its key
rows over its value rows. With fewer key-value heads than ranks each head is held by ``tp / num_kv_heads`` consecutive ranks.
All experts of a layer are one parameter, each cut as an MLP is: ``w13`` [experts, gate over up, hidden] and ``w2`` [experts,
hidden, intermediate], described as the matrices that one sees when the first two axes are one. vLLM runs without pipeline
stages here, and a tied head is the embedding itself.
"""

from collections.abc import Sequence

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.families import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, Role
from cfpo_hybrid.models.hf_tensors import experts_of, hf_names, tensor_areas
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.models.stages import EQUAL_STAGES, PipelineCut, pipeline_layers
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec

Share = tuple[int, int]
"""A rank's number in a parallel group and the size of the group."""

Stack = Sequence[tuple[int, Rectangle]]
"""What a local parameter is made of, from top to bottom: the numbers of tensors and equally wide rectangles of them."""

_CUT_AXIS = {
    Role.GATE_UP: 0,
    Role.EXPERT_GATE_UP: 0,
    Role.ATTENTION_OUT: 1,
    Role.DOWN: 1,
    Role.EXPERT_DOWN: 1,
}
"""The axis along which tensor parallelism cuts a parameter's tensors; what is not listed is whole on every rank."""

MEGATRON_VOCABULARY_ROWS = 8
"""A tensor-parallel rank's rows of Megatron's embedding are a multiple of this: 16 bytes of bf16, which tensor cores like.

Megatron-LM's own 128 would make the tiny vocabularies of tests mostly padding.
"""
VLLM_VOCABULARY_ROWS = 64
"""vLLM pads the whole vocabulary to a multiple of this, whatever its tensor-parallel size is."""


def megatron_specs(
    shape: ModelShape, layout: ParallelLayout, coordinate: Coordinate, cut: PipelineCut = EQUAL_STAGES
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
    table = [(parameter, _megatron_stack(parameter.role, shape, tp)) for parameter in FAMILIES.get(shape.family).layer]
    specs = []
    if coordinate.pp == 0:
        specs.append(_vocabulary_shard(f"{prefixes[0]}embedding.word_embeddings.weight", EMBEDDING, shape, rows, tp))
    for prefix, layers in zip(prefixes, chunks, strict=True):
        for local, layer in enumerate(layers):
            for parameter, stack in table:
                name = f"{prefix}decoder.layers.{local}.{parameter.megatron}"
                for number, expert in enumerate(_own_experts(parameter.role, shape, ep)):
                    names = hf_names(parameter, layer, [expert])
                    specs.append(_stacked(name.replace("{expert}", str(number)), names, stack))
    if coordinate.pp == layout.pp - 1:
        norm = [(0, Rectangle.whole((shape.hidden_size,)))]
        specs.append(_stacked(f"{prefixes[-1]}decoder.final_layernorm.weight", [FINAL_NORM], norm))
        if layout.pp > 1 or not shape.tied_embeddings:
            head = EMBEDDING if shape.tied_embeddings else LM_HEAD
            specs.append(_vocabulary_shard(f"{prefixes[-1]}output_layer.weight", head, shape, rows, tp))
    return specs


def chunk_prefix(chunk: int, num_chunks: int) -> str:
    """What stands before the names of a chunk's parameters, to tell them from those of the rank's other chunks."""
    return f"chunk{chunk}." if num_chunks > 1 else ""


def vllm_specs(shape: ModelShape, tp_size: int, tp_rank: int) -> list[ShardSpec]:
    """The parameters of tensor-parallel rank ``tp_rank``.

    Raises:
        ModelError: the model does not divide over tp.
    """
    check_rollout_divides(shape, tp_size)
    tp, rows = (tp_rank, tp_size), vllm_padded_vocab_size(shape.vocab_size)
    table = [(parameter, _vllm_stack(parameter.role, shape, tp)) for parameter in FAMILIES.get(shape.family).layer]
    specs = [_vocabulary_shard(EMBEDDING, EMBEDDING, shape, rows, tp)]
    for layer in range(shape.num_layers):
        for parameter, stack in table:
            names = hf_names(parameter, layer, experts_of(parameter.role, shape))
            specs.append(_stacked(f"model.layers.{layer}.{parameter.vllm}", names, stack))
    specs.append(ShardSpec.of_whole_tensor(FINAL_NORM, (shape.hidden_size,)))
    if not shape.tied_embeddings:
        specs.append(_vocabulary_shard(LM_HEAD, LM_HEAD, shape, rows, tp))
    return specs


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of Megatron's whole embedding: the smallest multiple of ``8 * tp`` that holds the vocabulary.

    Example: ``padded_vocab_size(100, 2) == 112``.
    """
    return _round_up(vocab_size, MEGATRON_VOCABULARY_ROWS * tp)


def vllm_padded_vocab_size(vocab_size: int) -> int:
    """Rows of vLLM's whole embedding (``pad_vocab_size`` of its ``VocabParallelEmbedding``)."""
    return _round_up(vocab_size, VLLM_VOCABULARY_ROWS)


def check_divides(shape: ModelShape, tp: int, engine: str) -> None:
    """Refuses a tensor-parallel size that does not divide the model.

    Raises:
        ModelError: heads or the intermediate size do not divide by tp, or kv heads neither divide nor are divided.
    """
    undivided = _undivided(shape, tp)
    if undivided:
        legal = [size for size in range(1, shape.num_heads + 1) if not _undivided(shape, size)]
        raise ModelError(
            f"{engine} tensor parallel size {tp} does not fit the model: {'; '.join(undivided)}; "
            f"sizes that fit: {', '.join(map(str, legal))}"
        )


def _undivided(shape: ModelShape, tp: int) -> list[str]:
    """What does not divide. vLLM cuts every expert; Megatron keeps experts whole, and needs no more than vLLM."""
    width = shape.experts.intermediate_size if shape.experts else shape.intermediate_size
    found = []
    if shape.num_heads % tp:
        found.append(f"{shape.num_heads} attention heads")
    if width % tp:
        found.append(f"intermediate size {width}")
    if shape.num_kv_heads % tp and tp % shape.num_kv_heads:
        found.append(f"{shape.num_kv_heads} key-value heads (they must divide tp or be divided by it)")
    return found


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


def check_rollout_divides(shape: ModelShape, tp: int) -> None:
    """Refuses a tensor-parallel size that vLLM cannot cut the model by.

    Raises:
        ModelError: heads, the intermediate size or the padded vocabulary do not divide.
    """
    check_divides(shape, tp, "vLLM")
    padded = vllm_padded_vocab_size(shape.vocab_size)
    if padded % tp:
        raise ModelError(
            f"vLLM pads the vocabulary of {shape.vocab_size} to {padded} rows, which do not divide by tensor parallel "
            f"size {tp}; use a power of two"
        )


def _own_experts(role: Role, shape: ModelShape, ep: Share) -> range:
    """A rank's share of the experts that have such a parameter; what is not an expert's is not shared out."""
    experts, (rank, size) = experts_of(role, shape), ep
    count = len(experts) // size
    return experts[rank * count : (rank + 1) * count] if role.is_experts else experts


def _megatron_stack(role: Role, shape: ModelShape, tp: Share) -> Stack:
    """What a rank has of a row of the table; of an expert all."""
    if role.is_qkv:
        return _interleaved(tensor_areas(role, shape), shape.num_kv_heads, tp)
    return list(enumerate(tensor_areas(role, shape) if role.is_experts else _cut_evenly(role, shape, tp)))


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
            part = _equal_part(area, 0, (group, groups))
            begin, end = max(first, top), min(first + count, top + part.size[0])
            if begin < end:
                found.append((number, part.along(0, begin - top, end - begin)))
            top += part.size[0]
    return found


def _vllm_stack(role: Role, shape: ModelShape, tp: Share) -> Stack:
    """What a rank has of a row of the table; of experts all, on top of each other."""
    if not role.is_qkv:
        return list(enumerate(_cut_evenly(role, shape, tp) * len(experts_of(role, shape))))
    query, key, value = tensor_areas(role, shape)
    rank, size = tp
    parts = min(size, shape.num_kv_heads)
    share = (rank * parts // size, parts)  # of several ranks, where there are fewer heads than ranks
    return list(enumerate((_equal_part(query, 0, tp), _equal_part(key, 0, share), _equal_part(value, 0, share))))


def _equal_part(area: Rectangle, axis: int, share: Share) -> Rectangle:
    """One of equal parts along an axis."""
    number, count = share
    size = area.size[axis] // count
    return area.along(axis, number * size, size)


def _cut_evenly(role: Role, shape: ModelShape, tp: Share) -> list[Rectangle]:
    """A rank's equal part of each tensor: how both engines cut all but query, key and value."""
    areas, axis = tensor_areas(role, shape), _CUT_AXIS.get(role)
    return areas if axis is None else [_equal_part(area, axis, tp) for area in areas]


def _stacked(name: str, hf_names: Sequence[str], stack: Stack) -> ShardSpec:
    """The parameter of this name that is made of these tensors."""
    width = stack[0][1].size[1:]
    pieces, top, left = [], 0, (0,) * len(width)
    for number, area in stack:
        pieces.append(Piece(hf_names[number], area, (top, *left)))
        top += area.size[0]
    return ShardSpec(name, (top, *width), tuple(pieces))


def _vocabulary_shard(name: str, hf_name: str, shape: ModelShape, padded_rows: int, tp: Share) -> ShardSpec:
    """A rank's rows of an embedding that is padded to so many; those beyond the vocabulary are padding."""
    number, ranks = tp
    rows, hidden = padded_rows // ranks, shape.hidden_size
    first = number * rows
    real = max(0, min(rows, shape.vocab_size - first))
    piece = Piece(hf_name, Rectangle((first, 0), (real, hidden)), (0, 0))
    padding = Rectangle((real, 0), (rows - real, hidden))
    return ShardSpec(name, (rows, hidden), (piece,) if real else (), (padding,) if real < rows else ())


def _round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple
