"""A Config as plain nested settings, which are a recipe of the same run, and what differs between two such."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainer.config.schema import Config


def resolved(config: Config) -> dict[str, Any]:
    """Plain nested settings, defaults included, with the loss's knobs beside its name as in a recipe."""
    tree = asdict(config)
    tree["policy_loss"] |= tree["policy_loss"].pop("knobs")
    return tree


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two nested configs, with the saved and the current value."""
    before, now = _flat(saved), _flat(current)
    keys = [*before, *(key for key in now if key not in before)]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
