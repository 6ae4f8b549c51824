"""The layer tables that families share: Llama-like blocks, dense or with a mixture of experts."""

from cfpo_hybrid.models.family import LayerParameter, Role


def dense_layer(*, qkv_bias: bool = False, qk_norm: bool = False) -> tuple[LayerParameter, ...]:
    """Pre-norm attention and SwiGLU."""
    return (
        *_attention(qkv_bias, qk_norm),
        LayerParameter(
            role=Role.GATE_UP,
            hugging_face=("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            megatron="mlp.linear_fc1.weight",
            vllm="mlp.gate_up_proj.weight",
        ),
        _same(Role.DOWN, "mlp.down_proj.weight", "mlp.linear_fc2.weight"),
    )


def mixture_layer(*, qkv_bias: bool = False, qk_norm: bool = False) -> tuple[LayerParameter, ...]:
    """Pre-norm attention, a router and SwiGLU experts."""
    return (
        *_attention(qkv_bias, qk_norm),
        _same(Role.ROUTER, "mlp.gate.weight", "mlp.router.weight"),
        LayerParameter(
            role=Role.EXPERT_GATE_UP,
            hugging_face=("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"),
            megatron="mlp.experts.local_experts.{expert}.linear_fc1.weight",
            vllm="mlp.experts.routed_experts.w13_weight",
        ),
        LayerParameter(
            role=Role.EXPERT_DOWN,
            hugging_face=("mlp.experts.{expert}.down_proj.weight",),
            megatron="mlp.experts.local_experts.{expert}.linear_fc2.weight",
            vllm="mlp.experts.routed_experts.w2_weight",
        ),
    )


def _attention(qkv_bias: bool, qk_norm: bool) -> tuple[LayerParameter, ...]:
    """Attention with the norms before it and before what follows it."""
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    weights, biases = (tuple(f"{name}.{kind}" for name in projections) for kind in ("weight", "bias"))
    bias = LayerParameter(
        role=Role.QKV_BIAS,
        hugging_face=biases,
        megatron="self_attention.linear_qkv.bias",
        vllm="self_attn.qkv_proj.bias",
    )
    norms = (
        _same(Role.HEAD_NORM, "self_attn.q_norm.weight", "self_attention.q_layernorm.weight"),
        _same(Role.HEAD_NORM, "self_attn.k_norm.weight", "self_attention.k_layernorm.weight"),
    )
    return (
        _same(Role.NORM, "input_layernorm.weight", "input_layernorm.weight"),
        LayerParameter(
            role=Role.QKV,
            hugging_face=weights,
            megatron="self_attention.linear_qkv.weight",
            vllm="self_attn.qkv_proj.weight",
        ),
        *((bias,) if qkv_bias else ()),
        *(norms if qk_norm else ()),
        _same(Role.ATTENTION_OUT, "self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
        _same(Role.NORM, "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
    )


def _same(role: Role, hugging_face: str, megatron: str) -> LayerParameter:
    return LayerParameter(role=role, hugging_face=(hugging_face,), megatron=megatron, vllm=hugging_face)
