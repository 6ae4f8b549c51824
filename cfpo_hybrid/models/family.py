"""What a model family is: how its config.json is read, and which tensors a decoder layer has in three vocabularies.

A family is one :class:`Family` record in a file of its own. Its ``layer`` table names every parameter of a decoder
layer as Megatron-core, Hugging Face and vLLM call it; the role says how tensor parallelism cuts it. From the table
follow the shard specs of both engines, the reshard plan, loading and export. To add a dense family, copy ``qwen2.py``
and name it in ``cfpo_hybrid/models/__init__.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.registry import Registry


class Role(Enum):
    """How a parameter of a decoder layer is fused and cut over tensor-parallel ranks."""

    NORM = auto()
    """A vector of hidden_size, on every rank."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerParameter:
    """One parameter of a decoder layer under its three names, each relative to the layer.

    Args:
        role: how it is fused and cut.
        hugging_face: the tensors it is made of, in fusion order.
        megatron: name after ``decoder.layers.N.``.
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
        read_shape: config.json as a mapping -> shape; raises ModelError for variants that are not supported.
        layer: the parameters of a decoder layer.
    """

    model_type: str
    architecture: str
    read_shape: Callable[[Mapping[str, Any]], ModelShape]
    layer: tuple[LayerParameter, ...]


EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
"""Hugging Face names outside the layers, the same in every family so far."""

FAMILIES: Registry[Family] = Registry("model family")


def dense_layer(*, qkv_bias: bool) -> tuple[LayerParameter, ...]:
    """The layer table of a Llama-like block: pre-norm attention and SwiGLU."""
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    weights, biases = (tuple(f"{name}.{kind}" for name in projections) for kind in ("weight", "bias"))
    bias = LayerParameter(
        role=Role.QKV_BIAS,
        hugging_face=biases,
        megatron="self_attention.linear_qkv.bias",
        vllm="self_attn.qkv_proj.bias",
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
        _same(Role.ATTENTION_OUT, "self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
        _same(Role.NORM, "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
        LayerParameter(
            role=Role.GATE_UP,
            hugging_face=("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            megatron="mlp.linear_fc1.weight",
            vllm="mlp.gate_up_proj.weight",
        ),
        _same(Role.DOWN, "mlp.down_proj.weight", "mlp.linear_fc2.weight"),
    )


def _same(role: Role, hugging_face: str, megatron: str) -> LayerParameter:
    return LayerParameter(role=role, hugging_face=(hugging_face,), megatron=megatron, vllm=hugging_face)
