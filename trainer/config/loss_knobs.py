"""The policy loss of a recipe: loads plugins, checks the keys beside ``policy_loss.name`` against the loss's own knobs."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.algorithms.policy_loss.plugins import load_plugins, resolve_plugins
from cfpo_hybrid.errors import ConfigError, RegistryError
from trainer.config.problem import Problem
from workers.config import PolicyLossConfig


def fill_knobs(section: PolicyLossConfig, extras: Mapping[str, Any]) -> tuple[PolicyLossConfig, list[Problem]]:
    """The section with absolute plugin paths and every knob of the loss, defaults included; and what is wrong with it.

    Args:
        section: ``policy_loss`` without knobs.
        extras: the other keys that the recipe wrote there, by name.
    """
    try:
        plugins = resolve_plugins(section.plugins)
        load_plugins(plugins)
    except ConfigError as error:
        return section, [Problem(("policy_loss.plugins",), message) for message in error.problems]
    try:
        loss = build_policy_loss(section.name, **dict(extras))
    except RegistryError as error:
        return section, [Problem(("policy_loss.name",), f"policy_loss.name: {error}")]
    except ConfigError as error:
        return section, [Problem(_keys_of(message, extras), message) for message in error.problems]
    knobs = {knob.name: getattr(loss.config, knob.name) for knob in fields(loss.config) if knob.init}
    return replace(section, plugins=plugins, knobs=knobs), []


def _keys_of(message: str, extras: Mapping[str, Any]) -> tuple[str, ...]:
    named = tuple(f"policy_loss.{knob}" for knob in extras if message.startswith(f"policy_loss.{knob}="))
    return named or ("policy_loss.name",)
