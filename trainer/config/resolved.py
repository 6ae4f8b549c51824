"""A Config as plain nested settings, which are a recipe of the same run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from trainer.config.schema import Config


def resolved(config: Config) -> dict[str, Any]:
    """Plain nested settings, defaults included, with the loss's knobs beside its name as in a recipe."""
    tree = asdict(config)
    tree["policy_loss"] |= tree["policy_loss"].pop("knobs")
    return tree


def save_resolved(config: Config, path: str | Path) -> None:
    """Writes every setting, defaults included, as YAML; the file loads as a recipe of the same run."""
    Path(path).write_text(yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
