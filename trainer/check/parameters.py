"""How many parameters one rank of each engine holds."""

from cfpo_hybrid.models import ModelShape, padded_vocab_size, stage_sizes
from cfpo_hybrid.models.engine_specs import vllm_padded_vocab_size
from workers.config import MegatronConfig


def layer_parameters(shape: ModelShape, tp: int, ep: int | None = None) -> int:
    """Parameters of one decoder layer on a rank; norms and routers are not cut.

    Args:
        shape: of the model.
        tp: tensor-parallel size.
        ep: expert-parallel size of Megatron; None for vLLM, which cuts experts by tp.
    """
    qkv = (shape.query_size + 2 * shape.kv_size) * (shape.hidden_size + shape.qkv_bias)
    attention = qkv + shape.query_size * shape.hidden_size
    router = shape.experts.count * shape.hidden_size if shape.experts else 0
    mlp = shape.mlp_parameters - router
    norms = 2 * shape.hidden_size + 2 * shape.head_dim * shape.qk_norm
    if shape.experts and ep:
        return -(-attention // tp) + mlp // ep + router + norms
    return -(-(attention + mlp) // tp) + router + norms


def stage_experts(shape: ModelShape, megatron: MegatronConfig) -> list[int]:
    """Parameters of the experts on one rank of each pipeline stage of Megatron."""
    if shape.experts is None:
        return [0] * megatron.pipeline_parallel_size
    layer = 3 * shape.experts.count * shape.hidden_size * shape.experts.intermediate_size
    return [layers * layer // megatron.expert_parallel_size for layers in _stages(shape, megatron)]


def stage_parameters(shape: ModelShape, megatron: MegatronConfig) -> list[int]:
    """Parameters of one rank of each pipeline stage of Megatron.

    The first stage has the embedding and the last one the head; when they are tied, the last of several stages has a
    copy of its own.
    """
    tp, pp = megatron.tensor_parallel_size, megatron.pipeline_parallel_size
    layer = layer_parameters(shape, tp, megatron.expert_parallel_size)
    counts = [layers * layer for layers in _stages(shape, megatron)]
    embedding = padded_vocab_size(shape.vocab_size, tp) // tp * shape.hidden_size
    counts[0] += embedding
    counts[-1] += shape.hidden_size + (embedding if pp > 1 or not shape.tied_embeddings else 0)
    return counts


def rollout_parameters(shape: ModelShape, tp: int) -> int:
    """Parameters of one vLLM rank; with fewer key-value heads than ranks each head is held more than once."""
    copies = max(1, tp // shape.num_kv_heads)
    extra = 2 * shape.kv_size * (shape.hidden_size + shape.qkv_bias) * (copies - 1) // tp
    embedding = vllm_padded_vocab_size(shape.vocab_size) // tp * shape.hidden_size
    embeddings = embedding if shape.tied_embeddings else 2 * embedding
    return shape.num_layers * (layer_parameters(shape, tp) + extra) + embeddings + shape.hidden_size


def _stages(shape: ModelShape, megatron: MegatronConfig) -> tuple[int, ...]:
    return stage_sizes(shape.num_layers, megatron.pipeline_parallel_size, megatron.cut)
