"""The tensors of a model's Hugging Face checkpoint: names, shapes, and which of them a parameter is made of. Pure."""

from collections.abc import Iterable, Mapping

from cfpo_hybrid.models.families import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, LayerParameter, Role
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.resharding.shard_spec import Rectangle


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
