"""Reads the keys of config.json that dense families share, as transformers 4 and 5 write them."""

from collections.abc import Mapping
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.shape import Llama3RopeScaling, ModelShape

DEFAULT_ROPE_THETA = 10000.0


def read_dense_shape(
    config: Mapping[str, Any], *, family: str, qkv_bias: bool = False, qk_norm: bool = False
) -> ModelShape:
    """The shape of a Llama-like model.

    Args:
        config: config.json.
        family: its ``model_type``.
        qkv_bias: query, key and value have biases.
        qk_norm: each head's query and key are normalised.

    Raises:
        ModelError: a key is missing, or asks for an activation or rotary scaling that is not supported.
    """
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json has hidden_act='{activation}'; only 'silu' (SwiGLU) is supported")
    hidden_size, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
    theta, scaling = _rope(config)
    return ModelShape(
        family=family,
        num_layers=read_size(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=read_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=read_size(config, "num_key_value_heads", num_heads),
        head_dim=read_size(config, "head_dim", hidden_size // num_heads),
        vocab_size=read_size(config, "vocab_size"),
        max_position_embeddings=read_size(config, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qkv_bias=qkv_bias,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
    )


def refuse(config: Mapping[str, Any], *keys: str) -> None:
    """Refuses what changes the model and is not supported.

    Raises:
        ModelError: one of the keys is there and not false, null or empty.
    """
    for key in keys:
        if config.get(key):
            raise ModelError(
                f"config.json has {key}={config[key]!r}, which is not supported in models of type "
                f"{config.get('model_type')}"
            )


def read_size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of at least 1; where the key is missing or null, the default.

    Raises:
        ModelError: the key is missing and has no default, or is something else.
    """
    size = default if config.get(key) is None else config[key]
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"config.json has {key}={size!r}; it must be a whole number of at least 1")
    return size


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """(theta, scaling): ``rope_parameters`` in transformers 5, ``rope_theta`` and ``rope_scaling`` before."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or DEFAULT_ROPE_THETA)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"rotary scaling '{kind}' is not supported; supported are 'default' and 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if key not in rope]
    if missing:
        raise ModelError(f"rotary scaling 'llama3' in config.json lacks {', '.join(missing)}")
    return theta, Llama3RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
    )
