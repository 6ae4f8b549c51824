"""The model families: how each one's config.json is read, and which tensors its decoder layers have in three vocabularies.

A family is one :class:`Family` record. Its ``layer`` table names every parameter of a decoder layer as Megatron-core,
Hugging Face and vLLM call it; the role says how it is cut over ranks. From the table follow the shard specs of both
engines, the reshard plan, loading and export. To add a dense family, add a record below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.hf_config import read_dense_shape, read_experts, refuse
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.registry import Registry, nearest_name

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
"""Hugging Face names outside the layers, the same in every family so far."""


class Role(Enum):
    """How a parameter of a decoder layer is fused and cut over ranks."""

    NORM = auto()
    """A vector of hidden_size, on every rank."""
    HEAD_NORM = auto()
    """A vector of head_dim, on every rank."""
    QKV = auto()
    """Rows of query, key and value: Megatron interleaves them by query group, vLLM stacks them."""
    QKV_BIAS = auto()
    """As QKV, a vector."""
    ATTENTION_OUT = auto()
    """[hidden_size, query_size], cut along its columns."""
    GATE_UP = auto()
    """Each rank's rows of gate above its rows of up."""
    DOWN = auto()
    """[hidden_size, intermediate_size], cut along its columns."""
    ROUTER = auto()
    """[number of experts, hidden_size], on every rank."""
    EXPERT_GATE_UP = auto()
    """As GATE_UP, of each expert. Megatron has whole experts, each a parameter; vLLM cuts all and stacks them."""
    EXPERT_DOWN = auto()
    """As DOWN, of each expert, likewise."""

    @property
    def is_qkv(self) -> bool:
        """Query, key and value, which each engine fuses in its own way."""
        return self in (Role.QKV, Role.QKV_BIAS)

    @property
    def is_experts(self) -> bool:
        """There is one for each expert."""
        return self in (Role.EXPERT_GATE_UP, Role.EXPERT_DOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerParameter:
    """One parameter of a decoder layer under its three names, each relative to the layer.

    Args:
        role: how it is fused and cut.
        hugging_face: the tensors it is made of, in fusion order; of an expert's, ``{expert}`` is its number.
        megatron: name after ``decoder.layers.N.``; of an expert's, ``{expert}`` is its number on the rank.
        vllm: name after ``model.layers.N.``.
    """

    role: Role
    hugging_face: tuple[str, ...]
    megatron: str
    vllm: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of models.

    Args:
        model_type: Hugging Face's ``model_type``; the name in the registry.
        architecture: Hugging Face's class, as in ``architectures``.
        layer: the parameters of a decoder layer.
        refused: keys of config.json that change the model in a way that is not supported: silence would train another.
        defaults: those that ``transformers`` gives to keys that may be missing, where they are not Llama's.
        complete: what config.json says besides; raises ModelError for variants that are not supported.
    """

    model_type: str
    architecture: str
    layer: tuple[LayerParameter, ...]
    refused: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[ModelShape, Mapping[str, Any]], ModelShape] = lambda shape, config: shape

    def read_shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape of a model of this family.

        Raises:
            ModelError: a variant that is not supported.
        """
        refuse(config, *self.refused)
        roles = {parameter.role for parameter in self.layer}
        shape = read_dense_shape(
            {**self.defaults, **config},
            family=self.model_type,
            qkv_bias=Role.QKV_BIAS in roles,
            qk_norm=Role.HEAD_NORM in roles,
        )
        return self.complete(shape, config)


def _same(role: Role, hugging_face: str, megatron: str) -> LayerParameter:
    """A tensor that is no part of a larger one, and that vLLM calls as Hugging Face does."""
    return LayerParameter(role=role, hugging_face=(hugging_face,), megatron=megatron, vllm=hugging_face)


def _attention(qkv_bias: bool, qk_norm: bool) -> tuple[LayerParameter, ...]:
    """Attention with the norms before it and before what follows it."""
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    weight, bias = (
        LayerParameter(
            role=role,
            hugging_face=tuple(f"{projection}.{kind}" for projection in projections),
            megatron=f"self_attention.linear_qkv.{kind}",
            vllm=f"self_attn.qkv_proj.{kind}",
        )
        for role, kind in ((Role.QKV, "weight"), (Role.QKV_BIAS, "bias"))
    )
    norms = (
        _same(Role.HEAD_NORM, "self_attn.q_norm.weight", "self_attention.q_layernorm.weight"),
        _same(Role.HEAD_NORM, "self_attn.k_norm.weight", "self_attention.k_layernorm.weight"),
    )
    return (
        _same(Role.NORM, "input_layernorm.weight", "input_layernorm.weight"),
        weight,
        *((bias,) if qkv_bias else ()),
        *(norms if qk_norm else ()),
        _same(Role.ATTENTION_OUT, "self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
        _same(Role.NORM, "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
    )


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


def _within_window(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    """Mistral's first release looks back through a window only; null turns the window off."""
    window = config.get("sliding_window", 4096) or shape.max_position_embeddings
    # Sequences that fit into the window see all of themselves; longer ones would need windowed kernels.
    return replace(shape, max_position_embeddings=min(window, shape.max_position_embeddings))


def _with_plain_heads(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    if shape.query_size != shape.hidden_size:
        raise ModelError(
            f"config.json has head_dim={shape.head_dim} for {shape.num_heads} heads; vLLM's Qwen2 takes "
            f"hidden_size / num_attention_heads = {shape.hidden_size / shape.num_heads:g} only"
        )
    return shape


def _with_experts(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    if config.get("decoder_sparse_step", 1) != 1:
        raise ModelError(
            f"config.json has decoder_sparse_step={config['decoder_sparse_step']}; only mixtures in every layer "
            "(decoder_sparse_step=1) are supported"
        )
    return replace(shape, experts=read_experts(config))


FAMILIES: Registry[Family] = Registry("model family")

for _family in (
    # Llama 2, 3 and 3.1; 3.1 stretches its rotary frequencies.
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        layer=dense_layer(),
        refused=("attention_bias", "mlp_bias"),
    ),
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        layer=dense_layer(),
        complete=_within_window,
    ),
    # Qwen2 and Qwen2.5: biases on query, key and value; small ones tie their embeddings.
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        layer=dense_layer(qkv_bias=True),
        refused=("use_sliding_window",),
        complete=_with_plain_heads,
    ),
    # Qwen3: an RMSNorm on each head's query and key, heads of their own size, no biases.
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        layer=dense_layer(qk_norm=True),
        refused=("attention_bias", "use_sliding_window"),
        defaults={"head_dim": 128},
    ),
    # Qwen3 with a mixture of experts in every layer.
    Family(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        layer=mixture_layer(qk_norm=True),
        refused=("attention_bias", "use_sliding_window", "mlp_only_layers"),
        complete=_with_experts,
    ),
):
    FAMILIES.register(_family.model_type, _family)


def model_shape(hf_config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes.

    Raises:
        ModelError: an unknown ``model_type`` (the message lists the families), or a variant that is not supported.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        nearest = nearest_name(str(model_type), FAMILIES)
        hint = f"; nearest: '{nearest}'" if nearest else ""
        raise ModelError(
            f"model_type={model_type!r} is not supported; supported families: {', '.join(FAMILIES.names())}{hint}"
        )
    return FAMILIES.get(model_type).read_shape(hf_config)
