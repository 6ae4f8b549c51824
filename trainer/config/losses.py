"""Policy losses that a command line names, e.g. ``clip,cfpo:epsilon=0.1``, or all that are registered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES, PolicyLoss, build_policy_loss
from cfpo_hybrid.errors import ConfigError, UserError
from cfpo_hybrid.plugins import load_plugins
from trainer.config.sources import read_overrides

ALL = "all"


def choose_losses(words: str, plugins: Sequence[str] = ()) -> list[PolicyLoss]:
    """The losses that ``words`` names, each once.

    Args:
        words: ``"all"``, or names with commas between them, each with its knobs behind colons where they are not the
            defaults: ``"clip,cfpo:epsilon=0.1,clip:clip_low=0.2:clip_high=0.28"``.
        plugins: modules or Python files that register losses.

    Raises:
        UserError: a loss or knob that does not exist, or a plugin that cannot be loaded; all losses' mistakes at once.
    """
    load_plugins(plugins)
    if words == ALL:
        return registered_losses()
    chosen, problems = [], []
    for word in filter(None, (part.strip() for part in words.split(","))):
        try:
            chosen.append(_loss_of(word))
        except UserError as error:
            problems.append(str(error))
    if not chosen and not problems:
        problems.append(f"--losses '{words}' names no loss; write names with commas between them, or '{ALL}'")
    if problems:
        raise ConfigError(problems)
    return list({loss_label(loss): loss for loss in chosen}.values())


def registered_losses() -> list[PolicyLoss]:
    """Every registered loss with its defaults, those that have a knob without a default left out."""
    return [build_policy_loss(entry.name) for entry in POLICY_LOSSES.entries() if not entry.required_knobs]


def loss_of_section(section: Mapping[str, Any]) -> PolicyLoss:
    """The loss of a recipe's ``policy_loss``: name, plugins, and the loss's own knobs beside them.

    Raises:
        UserError: it cannot be built.
    """
    load_plugins(section.get("plugins") or ())
    knobs = {key: value for key, value in section.items() if key not in ("name", "plugins")}
    return build_policy_loss(str(section.get("name")), **knobs)


def loss_label(loss: PolicyLoss) -> str:
    """Its name, with the knobs that are not the defaults, e.g. ``cfpo epsilon=0.1``."""
    defaults = {knob.name: knob.default for knob in fields(loss.config)}
    changed = {name: value for name, value in asdict(loss.config).items() if value != defaults[name]}
    return " ".join([loss.name, *(f"{name}={value}" for name, value in changed.items())])


def _loss_of(word: str) -> PolicyLoss:
    name, *settings = word.split(":")
    sources, problems = read_overrides(settings)
    if problems:
        raise ConfigError(problems)
    return build_policy_loss(name, **_flat(source.tree for source in sources))


def _flat(trees: Iterable[Mapping[Any, Any]]) -> dict[str, Any]:
    return {str(key): value for tree in trees for key, value in tree.items()}
