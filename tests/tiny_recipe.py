"""A recipe with a model folder and data that exist, small enough to reason about by hand."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from cfpo_hybrid.models import model_shape
from cfpo_hybrid.models.hf_tensors import hf_shapes

TINY_MODEL = {
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
WORDS = {
    "version": "1.0",
    "added_tokens": [
        {"id": 1, "content": "<end>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ],
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<end>": 1, "1": 2, "+": 3}, "unk_token": "<unk>"},
}
TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + '<end>' }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ROW = {"problem": "1+1?", "solution": "\\boxed{2}", "level": "Level 1", "type": "Sums"}


def write_model(folder: Path, **changes: Any) -> Path:
    """A whole model of zeros, as config.json describes it with these changes, and a tokenizer of a few words."""
    config = TINY_MODEL | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": TEMPLATE}))
    tensors = {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in hf_shapes(model_shape(config)).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_recipe(folder: Path) -> Path:
    """A recipe in ``folder`` that breaks no rule."""
    model = write_model(folder / "model")
    data = folder / "train.jsonl"
    data.write_text((json.dumps(ROW) + "\n") * 16)
    settings = {
        "model": {"path": str(model)},
        "data": {
            "train_files": [str(data)],
            "train_batch_size": 16,
            "max_prompt_length": 32,
            "max_response_length": 64,
        },
        "rollout": {"group_size": 4},
        "algorithm": {"iterations": 2, "batch_ratio": 4},
        "policy_loss": {"name": "cfpo", "epsilon": 0.1},
        "actor": {"lr": 0.001},
        "trainer": {"num_workers": 2, "total_steps": 5, "device": "cpu", "run_dir": str(folder / "run")},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    return recipe
