"""Shard specs of a vLLM rank: the fused parameters of its model under ``named_parameters()``.

``qkv_proj`` stacks the rank's query rows over its key rows over its value rows. With fewer key-value heads than ranks
each head is held by ``tp / num_kv_heads`` consecutive ranks. All experts of a layer are one parameter, each cut as an MLP
is: ``w13`` [experts, gate over up, hidden] and ``w2`` [experts, hidden, intermediate], described as the matrices that one
sees when the first two axes are one. vLLM runs without pipeline stages here, and a tied head is the embedding itself.
"""

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.families import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, Role
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
from cfpo_hybrid.resharding.shard_spec import ShardSpec

VOCABULARY_ROWS = 64
"""vLLM pads the whole vocabulary to a multiple of this, whatever its tensor-parallel size is."""


def vllm_specs(shape: ModelShape, tp_size: int, tp_rank: int) -> list[ShardSpec]:
    """The parameters of tensor-parallel rank ``tp_rank``.

    Raises:
        ModelError: the model does not divide over tp.
    """
    check_rollout_divides(shape, tp_size)
    tp, rows = (tp_rank, tp_size), vllm_padded_vocab_size(shape.vocab_size)
    table = [(parameter, _stack(parameter.role, shape, tp)) for parameter in FAMILIES.get(shape.family).layer]
    specs = [vocabulary_shard(EMBEDDING, EMBEDDING, shape, rows, tp)]
    for layer in range(shape.num_layers):
        for parameter, stack in table:
            names = hf_names(parameter, layer, experts_of(parameter.role, shape))
            specs.append(stacked(f"model.layers.{layer}.{parameter.vllm}", names, stack))
    specs.append(final_norm(FINAL_NORM, shape))
    if not shape.tied_embeddings:
        specs.append(vocabulary_shard(LM_HEAD, LM_HEAD, shape, rows, tp))
    return specs


def vllm_padded_vocab_size(vocab_size: int) -> int:
    """Rows of vLLM's whole embedding (``pad_vocab_size`` of its ``VocabParallelEmbedding``)."""
    return round_up(vocab_size, VOCABULARY_ROWS)


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


def _stack(role: Role, shape: ModelShape, tp: Share) -> Stack:
    """What a rank has of a row of the table; of experts all, on top of each other."""
    if not role.is_qkv:
        return list(enumerate(cut_evenly(role, shape, tp) * len(experts_of(role, shape))))
    query, key, value = tensor_areas(role, shape)
    rank, size = tp
    parts = min(size, shape.num_kv_heads)
    share = (rank * parts // size, parts)  # of several ranks, where there are fewer heads than ranks
    return list(enumerate((equal_part(query, 0, tp), equal_part(key, 0, share), equal_part(value, 0, share))))
