"""Finds a Hugging Face model folder and turns its config.json into a ModelShape."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.family import FAMILIES
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.registry import nearest_name


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


def load_hf_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a local folder or of a Hugging Face id.

    Raises:
        ModelError: there is none, it cannot be fetched, or it is not JSON.
    """
    folder = Path(path).expanduser()
    file = folder / "config.json" if folder.is_dir() else Path(_fetch(path, revision, ["config.json"])) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model.path={path!r}: there is no config.json in {file.parent}") from None
    except ValueError as error:  # no JSON, or no text
        raise ModelError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds a {type(config).__name__}, not an object")
    return config


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: itself, or a snapshot of a Hugging Face id (weights, config and tokenizer).

    Raises:
        ModelError: it is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    return Path(_fetch(path, revision, ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))


def _fetch(path: str, revision: str | None, patterns: list[str]) -> str:
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path={path!r}: there is no such folder")
    # Imported here: a local folder must work where huggingface_hub is absent.
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"model.path={path!r} is no local folder, and as a Hugging Face id it could not be fetched "
            f"({type(error).__name__}: {reason}); give a folder with config.json, tokenizer and safetensors, or an id "
            "that this machine can reach"
        ) from None
