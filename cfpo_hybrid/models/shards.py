"""What the shard specs of both engines share: the model's Hugging Face tensors, how they are cut and how they are stacked."""

from collections.abc import Iterable, Mapping, Sequence

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.families import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, LayerParameter, Role
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec

Share = tuple[int, int]
"""A rank's number in a parallel group and the size of the group."""

Stack = Sequence[tuple[int, Rectangle]]
"""What a local parameter is made of, from top to bottom: the numbers of tensors and equally wide rectangles of them."""

CUT_AXIS = {
    Role.GATE_UP: 0,
    Role.EXPERT_GATE_UP: 0,
    Role.ATTENTION_OUT: 1,
    Role.DOWN: 1,
    Role.EXPERT_DOWN: 1,
}
"""The axis along which tensor parallelism cuts a parameter's tensors; what is not listed is whole on every rank."""


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the Hugging Face checkpoint; a tied head has none of its own."""
    hidden = shape.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not shape.tied_embeddings:
        shapes[LM_HEAD] = (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        for parameter in FAMILIES.get(shape.family).layer:
            experts = experts_of(parameter.role, shape)
            sizes = [area.size for area in tensor_areas(parameter.role, shape)] * len(experts)
            shapes |= zip(hf_names(parameter, layer, experts), sizes, strict=True)
    return shapes


def by_layer(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Hugging Face tensors in groups: a decoder layer's together, what lies outside of layers alone."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, size in shapes.items():
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else name, {})[name] = size
    return list(groups.values())


def tensor_areas(role: Role, shape: ModelShape) -> list[Rectangle]:
    """The whole Hugging Face tensors that a parameter is made of, of one expert."""
    hidden = shape.hidden_size
    qkv = (shape.query_size, shape.kv_size, shape.kv_size)
    count, width = (shape.experts.count, shape.experts.intermediate_size) if shape.experts else (0, 0)
    shapes: dict[Role, list[tuple[int, ...]]] = {
        Role.NORM: [(hidden,)],
        Role.HEAD_NORM: [(shape.head_dim,)],
        Role.QKV: [(rows, hidden) for rows in qkv],
        Role.QKV_BIAS: [(rows,) for rows in qkv],
        Role.ATTENTION_OUT: [(hidden, shape.query_size)],
        Role.GATE_UP: [(shape.intermediate_size, hidden)] * 2,
        Role.DOWN: [(hidden, shape.intermediate_size)],
        Role.ROUTER: [(count, hidden)],
        Role.EXPERT_GATE_UP: [(width, hidden)] * 2,
        Role.EXPERT_DOWN: [(hidden, width)],
    }
    return [Rectangle.whole(size) for size in shapes[role]]


def experts_of(role: Role, shape: ModelShape) -> range:
    """The experts that have such a parameter, each its own; what is not an expert's is there once."""
    return range(shape.experts.count) if role.is_experts and shape.experts else range(1)


def hf_names(parameter: LayerParameter, layer: int, experts: Iterable[int]) -> list[str]:
    """Full Hugging Face names of a parameter's tensors in a layer (counted over the whole model), expert by expert."""
    names = [f"model.layers.{layer}.{name}" for name in parameter.hugging_face]
    return [name.replace("{expert}", str(expert)) for expert in experts for name in names]


def equal_part(area: Rectangle, axis: int, share: Share) -> Rectangle:
    """One of equal parts along an axis."""
    number, count = share
    size = area.size[axis] // count
    return area.along(axis, number * size, size)


def cut_evenly(role: Role, shape: ModelShape, tp: Share) -> list[Rectangle]:
    """A rank's equal part of each tensor: how both engines cut all but query, key and value."""
    areas, axis = tensor_areas(role, shape), CUT_AXIS.get(role)
    return areas if axis is None else [equal_part(area, axis, tp) for area in areas]


def stacked(name: str, hf_names: Sequence[str], stack: Stack) -> ShardSpec:
    """The parameter of this name that is made of these tensors."""
    width = stack[0][1].size[1:]
    pieces, top, left = [], 0, (0,) * len(width)
    for number, area in stack:
        pieces.append(Piece(hf_names[number], area, (top, *left)))
        top += area.size[0]
    return ShardSpec(name, (top, *width), tuple(pieces))


def final_norm(name: str, shape: ModelShape) -> ShardSpec:
    """The norm after the last layer, whole on every rank."""
    return ShardSpec(name, (shape.hidden_size,), (Piece(FINAL_NORM, Rectangle.whole((shape.hidden_size,)), (0,)),))


def vocabulary_shard(name: str, hf_name: str, shape: ModelShape, padded_rows: int, tp: Share) -> ShardSpec:
    """A rank's rows of an embedding that is padded to so many; those beyond the vocabulary are padding."""
    number, ranks = tp
    rows, hidden = padded_rows // ranks, shape.hidden_size
    first = number * rows
    real = max(0, min(rows, shape.vocab_size - first))
    piece = Piece(hf_name, Rectangle((first, 0), (real, hidden)), (0, 0))
    padding = Rectangle((real, 0), (rows - real, hidden))
    return ShardSpec(name, (rows, hidden), (piece,) if real else (), (padding,) if real < rows else ())


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple


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
