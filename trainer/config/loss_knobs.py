"""The policy loss of a recipe: loads plugins, checks the keys beside ``policy_loss.name`` against the loss's own knobs."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES
from cfpo_hybrid.errors import ConfigError, RegistryError
from cfpo_hybrid.plugins import load_plugins, resolve_plugins
from trainer.config.problem import Problem, with_section
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
        return section, [Problem(("policy_loss.plugins",), f"policy_loss.plugins: {each}") for each in error.problems]
    try:
        loss = POLICY_LOSSES.get(section.name)
    except RegistryError as error:
        return section, [Problem(("policy_loss.name",), f"policy_loss.name: {error}")]
    mistakes = loss.problems(extras)
    if mistakes:
        return section, [
            Problem((f"policy_loss.{knob if knob in extras else 'name'}",), with_section("policy_loss", knob, message))
            for knob, message in mistakes
        ]
    config = loss.configure(extras)
    knobs = {knob.name: getattr(config, knob.name) for knob in fields(config) if knob.init}
    return replace(section, plugins=plugins, knobs=knobs), []
