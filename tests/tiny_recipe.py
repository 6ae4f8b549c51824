"""A recipe with a model folder and data that exist, small enough to reason about by hand."""

import json
from pathlib import Path

import yaml

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
}
ROW = {"problem": "1+1?", "solution": "\\boxed{2}", "level": "Level 1", "type": "Sums"}


def write_recipe(folder: Path) -> Path:
    """A recipe in ``folder`` that breaks no rule."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY_MODEL))
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
