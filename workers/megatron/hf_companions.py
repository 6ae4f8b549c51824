"""What stands beside the weights of an exported folder: config.json, the tokenizer, licences.

They are the source's, in words that transformers 4.56 and 5 both read: version 4 does not know ``rope_parameters`` and
would rotate by its default, knows special tokens of the user's own under another key, and has no class
``TokenizersBackend``.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfpo_hybrid.models import FAMILIES, ModelShape
from workers.tokenizer import CHAT_TEMPLATE, TEMPLATES_FOLDER

MODEL_CARD = "README.md"

COPIED = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "tokenization*.py",
    MODEL_CARD,
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files that an exported folder takes over from its source."""

NOT_COPIED = ("config.json", "*.index.json", "adapter_*", "trainer_state.json", "quant*config.json")
"""Files among them that belong to the source's weights or to its training."""


def write_companions(source: Path, out: Path, shape: ModelShape, dtype: torch.dtype, texts: Mapping[str, str]) -> None:
    """Writes all of a Hugging Face folder but its weights.

    Args:
        source: the folder the model came from.
        out: a folder with the weights.
        shape: of the model.
        dtype: of the weights.
        texts: files that are written instead of the source's, by name; a chat template replaces each of the source's.
    """
    left_out = {file for pattern in NOT_COPIED for file in source.glob(pattern)}
    for file in {file for pattern in COPIED for file in source.glob(pattern)} - left_out:
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    if (source / TEMPLATES_FOLDER).is_dir() and CHAT_TEMPLATE not in texts:
        shutil.copytree(source / TEMPLATES_FOLDER, out / TEMPLATES_FOLDER)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    _write_json(out / "config.json", _config(_read_json(source / "config.json"), shape, dtype))
    tokenizer = out / "tokenizer_config.json"
    if tokenizer.is_file():
        _write_json(tokenizer, _tokenizer_config(_read_json(tokenizer), texts.get(CHAT_TEMPLATE)))


def _config(config: dict[str, Any], shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    config = {key: value for key, value in config.items() if key != "auto_map"}  # vLLM and transformers have the class
    config |= {
        "architectures": [FAMILIES.get(shape.family).architecture],
        "tie_word_embeddings": shape.tied_embeddings,
        "rope_theta": shape.rope_theta,
        "dtype": name,
        "torch_dtype": name,
    }
    if shape.rope_scaling:
        config["rope_scaling"] = {"rope_type": "llama3", **asdict(shape.rope_scaling)}
    return config


def _tokenizer_config(config: dict[str, Any], chat_template: str | None) -> dict[str, Any]:
    tokens = config.get("extra_special_tokens")
    if isinstance(tokens, list):
        # Version 4 has a mapping of named tokens under this key; version 5 reads both keys.
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = tokens
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if chat_template is not None and "chat_template" in config:
        config["chat_template"] = chat_template
    return config


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
