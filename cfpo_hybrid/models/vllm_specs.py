"""Shard specs of a vLLM rank: the fused parameters of its model under ``named_parameters()``.

``qkv_proj`` stacks the rank's query rows over its key rows over its value rows. With fewer key-value heads than ranks
each head is held by ``tp / num_kv_heads`` consecutive ranks. All experts of a layer are one parameter, each cut as an MLP
is: ``w13`` [experts, gate over up, hidden] and ``w2`` [experts, hidden, intermediate], described as the matrices that one
sees when the first two axes are one. vLLM runs without pipeline stages here, and a tied head is the embedding itself.
"""

from collections.abc import Sequence

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
from cfpo_hybrid.models.vocab import vllm_padded_vocab_size
from cfpo_hybrid.resharding.shard_spec import ShardSpec


def vllm_specs(shape: ModelShape, tp_size: int, tp_rank: int) -> list[ShardSpec]:
    """The parameters of tensor-parallel rank ``tp_rank``.

    Raises:
        ModelError: the model does not divide over tp.
    """
    check_rollout_divides(shape, tp_size)
    tp, rows = (tp_rank, tp_size), vllm_padded_vocab_size(shape.vocab_size) // tp_size
    specs = [vocabulary_shard(EMBEDDING, EMBEDDING, shape, (tp_rank * rows, rows))]
    for layer in range(shape.num_layers):
        for parameter in FAMILIES.get(shape.family).layer:
            specs.append(_layer_spec(parameter, layer, shape, tp))
    specs.append(stacked(FINAL_NORM, [Rows(FINAL_NORM, 0, shape.hidden_size)], None))
    if not shape.tied_embeddings:
        specs.append(vocabulary_shard(LM_HEAD, LM_HEAD, shape, (tp_rank * rows, rows)))
    return specs


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


def _layer_spec(parameter: LayerParameter, layer: int, shape: ModelShape, tp: tuple[int, int]) -> ShardSpec:
    """A table's row in the layer with this number."""
    name = f"model.layers.{layer}.{parameter.vllm}"
    match parameter.role:
        case Role.QKV | Role.QKV_BIAS:
            return _qkv(parameter, name, hf_layer_names(parameter, layer), shape, tp)
        case Role.EXPERT_GATE_UP | Role.EXPERT_DOWN:
            hf_names = [hf_layer_names(parameter, layer, expert) for expert in experts_of(parameter, shape)]
            return _experts(parameter, name, hf_names, shape, tp)
        case _:
            return layer_parameter(parameter, name, hf_layer_names(parameter, layer), shape, tp)


def _experts(
    parameter: LayerParameter, name: str, hf_names: Sequence[Sequence[str]], shape: ModelShape, tp: tuple[int, int]
) -> ShardSpec:
    """The experts on top of each other; ``hf_names`` has the tensors of each."""
    assert shape.experts is not None
    rank, size = tp
    width = shape.experts.intermediate_size // size
    if parameter.role is Role.EXPERT_GATE_UP:
        rows = [Rows(hf_name, rank * width, width) for expert in hf_names for hf_name in expert]
        return stacked(name, rows, (0, shape.hidden_size))
    return stacked(name, [Rows(down, 0, shape.hidden_size) for (down,) in hf_names], (rank * width, width))


def _qkv(
    parameter: LayerParameter, name: str, hf_names: Sequence[str], shape: ModelShape, tp: tuple[int, int]
) -> ShardSpec:
    rank, size = tp
    query, key, value = hf_names
    queries = shape.query_size // size
    heads = max(1, shape.num_kv_heads // size)
    first_head = rank * shape.num_kv_heads // size
    start, count = first_head * shape.head_dim, heads * shape.head_dim
    rows = [Rows(query, rank * queries, queries), Rows(key, start, count), Rows(value, start, count)]
    columns = None if parameter.role is Role.QKV_BIAS else (0, shape.hidden_size)
    return stacked(name, rows, columns)
