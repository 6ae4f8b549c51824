"""What a model family is: how its config.json is read, and which tensors a decoder layer has in three vocabularies.

A family is one :class:`Family` record in a file of its own. Its ``layer`` table names every parameter of a decoder
layer as Megatron-core, Hugging Face and vLLM call it; the role says how it is cut over ranks. From the table follow the
shard specs of both engines, the reshard plan, loading and export. To add a dense family, copy ``qwen3.py`` and name it
in ``cfpo_hybrid/models/__init__.py``; ``layers.py`` has the tables that families share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.registry import Registry


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
