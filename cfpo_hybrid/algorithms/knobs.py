"""Builds the config of a registered function from the knobs that a recipe gives it, and says all that is wrong at once."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.registry import nearest_name


@dataclass(frozen=True, slots=True)
class KnobOwner:
    """Whose knobs are meant, as messages call them.

    Example: ``KnobOwner(section="policy_loss", name="cfpo")`` speaks of ``policy_loss.epsilon`` of ``'cfpo'``.
    """

    section: str
    name: str


def check_config_class(owner: str, config: type) -> None:
    """A config is a frozen dataclass.

    Raises:
        ConfigError: it is something else.
    """
    if not (is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(f"the config of {owner} is {config!r}; it must be a frozen dataclass")


def check_needs(owner: str, needs: Collection[str], optional: Collection[str]) -> frozenset[str]:
    """The inputs that a function reads besides those that are always there.

    Raises:
        ConfigError: one that is not among the ``optional`` inputs.
    """
    for need in needs:
        if need not in optional:
            raise ConfigError(f"{owner} needs '{need}'; it can ask for {', '.join(optional)}")
    return frozenset(needs)


def build_knobs(owner: KnobOwner, config: type, knobs: Mapping[str, object]) -> Any:
    """An instance of ``config`` with these knobs.

    Raises:
        ConfigError: knobs that are unknown, missing, of the wrong type or outside their range, all of them at once.
    """
    problems, values = _checked(owner, config, knobs)
    if problems:
        raise ConfigError(problems)
    try:
        return config(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{owner.section} of '{owner.name}': {error}") from error


def describe_knobs(config: type) -> tuple[tuple[str, str, str], ...]:
    """Name, type and default ("required" without one) of each knob."""
    described = []
    for field in fields(config):
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        described.append((field.name, kind, "required" if field.default is MISSING else repr(field.default)))
    return tuple(described)


def _checked(owner: KnobOwner, config: type, knobs: Mapping[str, object]) -> tuple[list[str], dict[str, object]]:
    """Problems found, and the knobs with whole numbers turned into floats where a float is meant."""
    types = get_type_hints(config)
    known: dict[str, Field[Any]] = {knob.name: knob for knob in fields(config) if knob.init}
    problems, values = [], dict(knobs)
    for knob, value in knobs.items():
        if knob not in known:
            nearest = nearest_name(knob, known)
            hint = f"; did you mean '{nearest}'?" if nearest else ""
            listing = ", ".join(known) or "none"
            problems.append(
                f"{owner.section}.{knob}={value!r}: '{owner.name}' has no such knob; its knobs: {listing}{hint}"
            )
        elif types[knob] is float and isinstance(value, int) and not isinstance(value, bool):
            values[knob] = float(value)
        elif types[knob] in (float, int, bool, str) and type(value) is not types[knob]:
            problems.append(f"{owner.section}.{knob}={value!r} must be of type {types[knob].__name__}")
    for knob, field in known.items():
        if knob not in knobs and field.default is MISSING and field.default_factory is MISSING:
            problems.append(f"{owner.section}.{knob} is missing: '{owner.name}' has no default for it; give it a value")
    return problems, values
