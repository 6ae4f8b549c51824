"""Policy losses as recipes and command lines name them: a name, and the loss's own knobs beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, get_type_hints

from omegaconf.errors import ValidationError

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES, LossEntry, PolicyLoss, build_policy_loss
from cfpo_hybrid.errors import ConfigError, RegistryError, UserError
from cfpo_hybrid.plugins import load_plugins, resolve_plugins
from cfpo_hybrid.registry import FunctionEntry
from trainer.config.foreign import foreign_key, name_hint
from trainer.config.merge import as_written
from trainer.config.problem import Problem, with_section
from trainer.config.sources import read_overrides
from workers.config import PolicyLossConfig

ALL = "all"


def fill_knobs(
    section: PolicyLossConfig, extras: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[PolicyLossConfig, list[Problem]]:
    """The section with absolute plugin paths and every knob of the loss, defaults included; and what is wrong with it.

    Args:
        section: ``policy_loss`` without knobs.
        extras: the other keys that the recipe wrote there, by name.
        texts: how each was written, by dotted key.
    """
    try:
        plugins = resolve_plugins(section.plugins)
        load_plugins(plugins)
    except ConfigError as error:
        return section, [Problem(("policy_loss.plugins",), f"policy_loss.plugins: {each}") for each in error.problems]
    try:
        loss = POLICY_LOSSES.get(section.name)
    except RegistryError as error:
        hint = name_hint("policy_loss.name", section.name)
        return section, [Problem(("policy_loss.name",), f"policy_loss.name: {_without_guess(error, hint)}{hint}")]
    extras = knobs_as_written(loss, extras, texts, "policy_loss")
    mistakes = loss.problems(extras)
    if mistakes:
        return section, [
            Problem(
                (f"policy_loss.{knob if knob in extras else 'name'}",),
                f"{with_section('policy_loss', knob, message)}{_foreign_hint(loss, knob, extras)}",
            )
            for knob, message in mistakes
        ]
    config = loss.configure(extras)
    knobs = {knob.name: getattr(config, knob.name) for knob in fields(config) if knob.init}
    return replace(section, plugins=plugins, knobs=knobs), []


def loss_of_section(section: Mapping[str, Any]) -> PolicyLoss:
    """The loss of a recipe's ``policy_loss``: name, plugins, and the loss's own knobs beside them.

    Raises:
        UserError: it cannot be built.
    """
    load_plugins(section.get("plugins") or ())
    knobs = {key: value for key, value in section.items() if key not in ("name", "plugins")}
    return build_policy_loss(str(section.get("name")), **knobs)


def choose_losses(words: str, plugins: Sequence[str] = ()) -> list[PolicyLoss]:
    """The losses that a command line names, each once.

    Args:
        words: ``"all"``, or names with commas between them, each with its knobs behind colons where they are not the
            defaults: ``"clip,cfpo:epsilon=0.1,clip:clip_low=0.2:clip_high=0.28"``.
        plugins: modules or Python files that register losses.

    Raises:
        UserError: a loss or knob that does not exist, or a plugin that cannot be loaded; all losses' mistakes at once.
    """
    load_plugins(plugins)
    if words == ALL:  # with their defaults, where every knob has one
        return [build_policy_loss(entry.name) for entry in POLICY_LOSSES.entries() if not entry.required_knobs]
    chosen, problems = [], []
    for word in filter(None, (part.strip() for part in words.split(","))):
        name, *settings = word.split(":")
        try:
            chosen.append(build_policy_loss(name, **read_knobs(name, settings)))
        except UserError as error:
            problems.append(str(error))
    if not chosen and not problems:
        problems.append(f"--losses '{words}' names no loss; write names with commas between them, or '{ALL}'")
    if problems:
        raise ConfigError(problems)
    return distinct(chosen)


def read_knobs(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The knobs that ``knob=value`` words set; the section's name may stand before them.

    Args:
        name: of the loss.
        words: e.g. ``["epsilon=0.1"]``.

    Raises:
        ConfigError: words that set nothing, all of them at once.
    """
    section = "policy_loss"
    sources, problems = read_overrides([f"{section}.{word.removeprefix(f'{section}.')}" for word in words])
    if problems:
        raise ConfigError([problem.replace(f"'{section}.", "'", 1) for problem in problems])
    values = {key.removeprefix(f"{section}."): value for source in sources for key, value in source.tree.items()}
    texts = {key: text for source in sources for key, text in source.texts.items()}
    return knobs_as_written(POLICY_LOSSES.get(name), values, texts, section) if name in POLICY_LOSSES else values


def knobs_as_written(
    entry: FunctionEntry, knobs: Mapping[str, Any], texts: Mapping[str, str], section: str
) -> dict[str, Any]:
    """Knobs as their types have them: a text is what was written, whatever YAML makes of it.

    Args:
        entry: whose knobs they are.
        knobs: by name, the values by YAML.
        texts: how they were written, by dotted key.
        section: under which they stand, e.g. ``algorithm.advantage_knobs``.
    """
    kinds = get_type_hints(entry.config)
    found = dict(knobs)
    for knob in found.keys() & kinds.keys():
        if isinstance(found[knob], dict | list) and kinds[knob] is not str:
            continue
        try:
            found[knob] = as_written(kinds[knob], found[knob], f"{section}.{knob}", texts)
        except ValidationError:  # the entry says what is wrong with it
            continue
    return found


def _foreign_hint(loss: LossEntry, knob: str, extras: Mapping[str, Any]) -> str:
    """Ours for a key that other trainers have, where the loss has no knob of that name."""
    foreign = (
        foreign_key(knob, ()) if knob in extras and knob not in dict.fromkeys(name for name, *_ in loss.knobs) else None
    )
    return f"; {foreign.answer(extras[knob])}" if foreign else ""


def _without_guess(error: RegistryError, hint: str) -> str:
    """The message without its nearest name where a better one is known."""
    return str(error).partition("; did you mean")[0] if hint else str(error)


def distinct(losses: Iterable[PolicyLoss]) -> list[PolicyLoss]:
    """Each loss with other knobs once."""
    return list({loss_label(loss): loss for loss in losses}.values())


def loss_label(loss: PolicyLoss) -> str:
    """Its name, with the knobs that are not the defaults, e.g. ``cfpo epsilon=0.1``."""
    defaults = {knob.name: knob.default for knob in fields(loss.config)}
    changed = {name: value for name, value in asdict(loss.config).items() if value != defaults[name]}
    return " ".join([loss.name, *(f"{name}={value}" for name, value in changed.items())])


def loss_words(section: Mapping[str, Any]) -> str:
    """The label of the loss of a recipe's ``policy_loss``; of one that cannot be built, name and all knobs."""
    if not section.get("name"):
        return ""
    try:
        return loss_label(loss_of_section(section))
    except UserError:
        knobs = [f"{key}={value}" for key, value in section.items() if key not in ("name", "plugins")]
        return " ".join([str(section["name"]), *knobs])
