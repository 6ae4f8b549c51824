"""What the shard specs of both engines share: stacked row ranges, vocabulary shards and the Hugging Face shapes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.family import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, LayerParameter, Role
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec


class Rows(NamedTuple):
    """Consecutive rows of a Hugging Face tensor."""

    hf_name: str
    first: int
    number: int


def stacked(name: str, rows: Sequence[Rows], columns: tuple[int, int] | None) -> ShardSpec:
    """A parameter that is row ranges of Hugging Face tensors on top of each other.

    Args:
        name: the engine's name of the parameter.
        rows: from top to bottom.
        columns: (first, count) of the columns held; None for a vector.
    """
    tail_start, tail_size = ((columns[0],), (columns[1],)) if columns else ((), ())
    pieces, top, left = [], 0, (0,) * len(tail_size)
    for hf_name, first, number in rows:
        hf = Rectangle((first, *tail_start), (number, *tail_size))
        pieces.append(Piece(hf_name, hf, (top, *left)))
        top += number
    return ShardSpec(name, (top, *tail_size), tuple(pieces))


def vocabulary_shard(name: str, hf_name: str, shape: ModelShape, shard: tuple[int, int]) -> ShardSpec:
    """Rows ``[first, first + count)`` of a padded embedding; those beyond the vocabulary are padding."""
    first, count = shard
    real = max(0, min(count, shape.vocab_size - first))
    whole = (count, shape.hidden_size)
    hf = Rectangle((first, 0), (real, shape.hidden_size))
    padding = Rectangle((real, 0), (count - real, shape.hidden_size))
    return ShardSpec(
        name,
        whole,
        pieces=(Piece(hf_name, hf, (0, 0)),) if real else (),
        padding=(padding,) if real < count else (),
    )


def layer_parameter(
    parameter: LayerParameter, name: str, hf_names: Sequence[str], shape: ModelShape, tp: tuple[int, int]
) -> ShardSpec:
    """The shard of a parameter that both engines cut in the same way: all but query-key-value and experts.

    Args:
        parameter: the row of the family's table.
        name: the engine's full name of it.
        hf_names: the full Hugging Face names of what it is made of.
        shape: the model.
        tp: (rank, size) of tensor parallelism.
    """
    rank, size = tp
    hidden = (0, shape.hidden_size)
    match parameter.role:
        case Role.NORM:
            return stacked(name, [Rows(hf_names[0], 0, shape.hidden_size)], None)
        case Role.HEAD_NORM:
            return stacked(name, [Rows(hf_names[0], 0, shape.head_dim)], None)
        case Role.ROUTER:
            assert shape.experts is not None
            return stacked(name, [Rows(hf_names[0], 0, shape.experts.count)], hidden)
        case Role.ATTENTION_OUT:
            width = shape.query_size // size
            return stacked(name, [Rows(hf_names[0], 0, shape.hidden_size)], (rank * width, width))
        case Role.DOWN:
            width = shape.intermediate_size // size
            return stacked(name, [Rows(hf_names[0], 0, shape.hidden_size)], (rank * width, width))
        case Role.GATE_UP:
            count = shape.intermediate_size // size
            return stacked(name, [Rows(hf_name, rank * count, count) for hf_name in hf_names], hidden)
        case _:
            raise ValueError(f"{parameter.role} is cut differently by each engine")


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the Hugging Face checkpoint; a tied head has none of its own."""
    hidden = shape.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not shape.tied_embeddings:
        shapes[LM_HEAD] = (shape.vocab_size, hidden)
    table = FAMILIES.get(shape.family).layer
    sizes_of = {parameter.role: _hf_sizes(shape, parameter.role) for parameter in table}
    for layer in range(shape.num_layers):
        for parameter in table:
            for expert in experts_of(parameter, shape):
                shapes |= zip(hf_layer_names(parameter, layer, expert), sizes_of[parameter.role], strict=True)
    return shapes


def by_layer(names: Iterable[str]) -> list[list[str]]:
    """Names of Hugging Face tensors or vLLM parameters, a decoder layer's together, what lies outside of layers alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else name, []).append(name)
    return list(groups.values())


def _hf_sizes(shape: ModelShape, role: Role) -> list[tuple[int, ...]]:
    """Shapes of the Hugging Face tensors that a parameter is made of."""
    hidden = shape.hidden_size
    rows = (shape.query_size, shape.kv_size, shape.kv_size)
    count, width = (shape.experts.count, shape.experts.intermediate_size) if shape.experts else (0, 0)
    sizes: dict[Role, list[tuple[int, ...]]] = {
        Role.NORM: [(hidden,)],
        Role.HEAD_NORM: [(shape.head_dim,)],
        Role.QKV: [(size, hidden) for size in rows],
        Role.QKV_BIAS: [(size,) for size in rows],
        Role.ATTENTION_OUT: [(hidden, shape.query_size)],
        Role.GATE_UP: [(shape.intermediate_size, hidden)] * 2,
        Role.DOWN: [(hidden, shape.intermediate_size)],
        Role.ROUTER: [(count, hidden)],
        Role.EXPERT_GATE_UP: [(width, hidden)] * 2,
        Role.EXPERT_DOWN: [(hidden, width)],
    }
    return sizes[role]


def experts_of(parameter: LayerParameter, shape: ModelShape) -> range:
    """The experts that have this parameter, each its own; what is not an expert's is there once."""
    is_experts = parameter.role in (Role.EXPERT_GATE_UP, Role.EXPERT_DOWN)
    return range(shape.experts.count) if is_experts and shape.experts else range(1)


def hf_layer_names(parameter: LayerParameter, layer: int, expert: int = 0) -> list[str]:
    """Full Hugging Face names of a parameter's tensors in a layer (counted over the whole model)."""
    return [f"model.layers.{layer}.{name}".replace("{expert}", str(expert)) for name in parameter.hugging_face]


def check_divides(shape: ModelShape, tp: int, engine: str) -> None:
    """Refuses a tensor-parallel size that does not divide the model.

    Raises:
        ModelError: heads or the intermediate size do not divide by tp, or kv heads neither divide nor are divided.
    """
    problems = []
    if shape.num_heads % tp:
        problems.append(f"{shape.num_heads} attention heads")
    if _cut_width(shape) % tp:
        problems.append(f"intermediate size {_cut_width(shape)}")
    if shape.num_kv_heads % tp and tp % shape.num_kv_heads:
        problems.append(f"{shape.num_kv_heads} key-value heads (they must divide tp or be divided by it)")
    if problems:
        legal = [size for size in range(1, shape.num_heads + 1) if _divides(shape, size)]
        raise ModelError(
            f"{engine} tensor parallel size {tp} does not fit the model: {'; '.join(problems)}; "
            f"sizes that fit: {', '.join(map(str, legal))}"
        )


def _divides(shape: ModelShape, tp: int) -> bool:
    kv_fits = shape.num_kv_heads % tp == 0 or tp % shape.num_kv_heads == 0
    return shape.num_heads % tp == 0 and _cut_width(shape) % tp == 0 and kv_fits


def _cut_width(shape: ModelShape) -> int:
    """What vLLM cuts of each MLP or expert; Megatron keeps experts whole, and needs no more than vLLM."""
    return shape.experts.intermediate_size if shape.experts else shape.intermediate_size
