"""A study file over the tiny recipe, which breaks no rule: nothing that it plans could be trained."""

from pathlib import Path
from typing import Any

import yaml
from tiny_recipe import write_recipe

AXES = {"policy_loss.name": ["clip", "cfpo"], "algorithm.iterations": [1, 4]}


def write_study_file(folder: Path, **keys: Any) -> Path:
    """Two losses x two numbers of iterations x two seeds, or what ``keys`` say instead."""
    recipe = folder / "recipe.yaml" if (folder / "recipe.yaml").exists() else write_recipe(folder)
    content = {"recipe": str(recipe), "output": str(folder / "out"), "seeds": [1, 2], "axes": AXES, **keys}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
