"""Finds a Hugging Face model folder, and reads the keys of its config.json that families share.

Keys are read as transformers 4 and 5 write them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.shape import Experts, Llama3RopeScaling, ModelShape

DEFAULT_ROPE_THETA = 10000.0

LFS_POINTER = b"version https://git-lfs"
"""How the small text begins that Git leaves in the place of a large file which it has not fetched."""


def load_hf_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a local folder or of a Hugging Face id.

    Raises:
        ModelError: there is none, it cannot be fetched, or it is not JSON.
    """
    folder = Path(path).expanduser()
    file = (folder if folder.is_dir() else _fetch(path, revision, ["config.json"])) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"there is no config.json in {file.parent}") from None
    except ValueError as error:  # no JSON, or no text
        found = "a Git LFS pointer, fetch it with `git lfs pull`" if is_lfs_pointer(file) else error
        raise ModelError(f"{file} is not JSON: {found}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds a {type(config).__name__}, not an object")
    return config


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file stands for one that a `git clone` without Git LFS has not fetched."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: itself, or a snapshot of a Hugging Face id (weights, config and tokenizer).

    Raises:
        ModelError: it is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    return _fetch(path, revision, ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"])


def _fetch(path: str, revision: str | None, patterns: list[str]) -> Path:
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ModelError(f"there is no such folder: {path}")
    # Imported here: a local folder must work where huggingface_hub is absent.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"'{path}' is no local folder, and as a Hugging Face id it could not be fetched "
            f"({type(error).__name__}: {reason}); give a folder with config.json, tokenizer and safetensors, or an id "
            "that this machine can reach"
        ) from None


def read_dense_shape(config: Mapping[str, Any], *, family: str, qkv_bias: bool, qk_norm: bool) -> ModelShape:
    """The shape of a Llama-like model.

    Args:
        config: config.json.
        family: its ``model_type``.
        qkv_bias: query, key and value have biases.
        qk_norm: each head's query and key are normalised.

    Raises:
        ModelError: a key is missing, or asks for an activation, a rotary scaling or quantised weights, which are not
            supported.
    """
    _refuse_quantised(config)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json has hidden_act='{activation}'; only 'silu' (SwiGLU) is supported")
    hidden_size, num_heads = _read_size(config, "hidden_size"), _read_size(config, "num_attention_heads")
    theta, scaling = _read_rope(config)
    return ModelShape(
        family=family,
        num_layers=_read_size(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_read_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_read_size(config, "num_key_value_heads", num_heads),
        head_dim=_read_size(config, "head_dim", hidden_size // num_heads),
        vocab_size=_read_size(config, "vocab_size"),
        max_position_embeddings=_read_size(config, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qkv_bias=qkv_bias,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
    )


def read_experts(config: Mapping[str, Any]) -> Experts:
    """The mixture that every layer has.

    Raises:
        ModelError: a key is missing, or the sizes are those of no mixture.
    """
    return Experts(
        # transformers 5 writes its own name of the key.
        count=_read_size(config, "num_experts" if "num_experts" in config else "num_local_experts"),
        per_token=_read_size(config, "num_experts_per_tok"),
        intermediate_size=_read_size(config, "moe_intermediate_size"),
        normalised=bool(config.get("norm_topk_prob", False)),
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


def _read_size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of at least 1; where the key is missing or null, the default.

    Raises:
        ModelError: the key is missing and has no default, or is something else.
    """
    size = default if config.get(key) is None else config[key]
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"config.json has {key}={size!r}; it must be a whole number of at least 1")
    return size


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    """Quantised weights are codes and scales: neither can be trained, nor does one mean anything without the other."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            known = config[key] if isinstance(config[key], Mapping) else {}
            method = known.get("quant_method") or known.get("format") or "unknown"
            raise ModelError(
                f"config.json has a {key} (method {method}): the weights are quantised and cannot be trained; take the "
                "checkpoint in bfloat16 that it was made from, or dequantise it and remove that key"
            )


def _read_rope(config: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """(theta, scaling): ``rope_parameters`` in transformers 5, ``rope_theta`` and ``rope_scaling`` before.

    A file may have both, for readers of both versions, where they say the same.

    Raises:
        ModelError: they contradict each other, or ask for what is not supported.
    """
    ropes = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    for key, rope in ropes.items():
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            raise ModelError(f"config.json has {key}={rope!r}; only one rotation for all layers is supported")
    stated = {"rope_theta": config.get("rope_theta")} | {
        f"{key}.rope_theta": rope.get("rope_theta") for key, rope in ropes.items()
    }
    thetas = {key: theta for key, theta in stated.items() if theta is not None}
    scalings = {key: _read_rope_scaling(rope) for key, rope in ropes.items()}
    for found in (thetas, scalings):
        if len(set(found.values())) > 1:
            said = " and ".join(f"{key}={stated.get(key) or config[key]}" for key in found)
            raise ModelError(f"config.json has {said}, which differ; remove what the model was not trained with")
    return float(next(iter(thetas.values()), DEFAULT_ROPE_THETA)), next(iter(scalings.values()), None)


def _read_rope_scaling(rope: Mapping[str, Any]) -> Llama3RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ModelError(f"config.json has partial_rotary_factor={rope['partial_rotary_factor']}; only 1 is supported")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"rotary scaling '{kind}' is not supported; supported are 'default' and 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if key not in rope]
    if missing:
        raise ModelError(f"rotary scaling 'llama3' in config.json lacks {', '.join(missing)}")
    return Llama3RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
    )
