"""Names to entries. Most registries hold functions whose knobs are the fields of a frozen dataclass.

A name taken twice raises, an unknown name is answered with all names and the nearest one, and the mistakes in a function's
knobs are told all at once. Policy losses and advantages are two such registries:

    POLICY_LOSSES: FunctionRegistry[LossEntry] = FunctionRegistry(LossEntry)
    POLICY_LOSSES.get("cfpo").configure({"epsilon": 0.1})        ->  CfpoConfig(epsilon=0.1)
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from cfpo_hybrid.errors import BatchError, ConfigError, RegistryError

Entry = TypeVar("Entry")
Function = TypeVar("Function", bound=Callable[..., Any])

REQUIRED = "required"
"""Stands for the default of a knob that has none."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``"; did you mean 'cfpo'?"``, or nothing when no name is close."""
    nearest = nearest_name(name, known)
    return f"; did you mean '{nearest}'?" if nearest else ""


class Registry(Generic[Entry]):
    """A mapping from names to entries of one kind.

    Args:
        kind: what the entries are, as messages call them, e.g. ``"model family"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Adds an entry.

        Raises:
            RegistryError: the name is taken.
        """
        if name in self._entries:
            raise RegistryError(f"{self.kind} '{name}' is registered twice; choose another name for the second one")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            RegistryError: no such name; the message lists what exists and the nearest name.
        """
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise RegistryError(f"unknown {self.kind} '{name}'; known: {', '.join(self.names())}{hint}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionEntry:
    """A function under a name; its knobs are the fields of ``config``. Each kind of function adds what else it declares.

    Example: ``POLICY_LOSSES.get("clip").knobs`` is ``(("clip_low", "float", "0.2"), ("clip_high", "float", "0.2"))``.

    Raises:
        ConfigError: the config is no frozen dataclass, or a need is not among ``OPTIONAL_INPUTS``.
    """

    KIND: ClassVar[str] = "function"
    """What messages call it."""
    OPTIONAL_INPUTS: ClassVar[tuple[str, ...]] = ()
    """Inputs of these functions that are there only when something needs them."""

    name: str
    function: Callable[..., Any]
    """Takes what its kind takes, and an instance of ``config``."""
    config: type
    needs: frozenset[str] = frozenset()
    """The optional inputs that the function reads."""
    summary: str = ""
    """The first line of the function's docstring, or what its alias says."""

    def __post_init__(self) -> None:
        if not (is_dataclass(self.config) and self.config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
            raise ConfigError(f"the config of {self} is {self.config!r}; it must be a frozen dataclass")
        for need in sorted(self.needs.difference(self.OPTIONAL_INPUTS)):
            raise ConfigError(f"{self} needs '{need}'; it can ask for {', '.join(self.OPTIONAL_INPUTS)}")

    def __str__(self) -> str:
        return f"{self.KIND} '{self.name}'"

    @property
    def knobs(self) -> tuple[tuple[str, str, str], ...]:
        """Name, type and default of each knob, the default as code or ``REQUIRED``."""
        return tuple((name, _type_name(knob), _default(knob)) for name, knob in self._fields().items())

    @property
    def required_knobs(self) -> tuple[str, ...]:
        """Names of the knobs without a default."""
        return tuple(name for name, _, default in self.knobs if default == REQUIRED)

    @property
    def source(self) -> str:
        """File and line of the function; the file relative to the current folder where it lies in it."""
        code = inspect.unwrap(self.function).__code__
        path = Path(code.co_filename)
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return f"{shown}:{code.co_firstlineno}"

    def configure(self, knobs: Mapping[str, object]) -> Any:
        """An instance of ``config`` with these knobs; a whole number serves where a float is meant.

        Raises:
            ConfigError: knobs that are unknown, missing, of the wrong type or outside their range, all of them at once.
        """
        config, problems = self._read(knobs)
        if problems:
            raise ConfigError([message if knob else f"{self.KIND} {message}" for knob, message in problems])
        return config

    def problems(self, knobs: Mapping[str, object]) -> list[tuple[str, str]]:
        """What ``configure`` would refuse: each knob with a message that begins with it.

        What the config itself refuses belongs to no single knob: it stands under "", and begins with the function's name.
        """
        return self._read(knobs)[1]

    def check_inputs(self, inputs: object) -> None:
        """Looks for the optional inputs that the function needs.

        Raises:
            BatchError: one of them is None.
        """
        missing = missing_inputs(inputs, self.needs)
        if missing:
            raise BatchError(f"{self} needs {', '.join(missing)}, which the inputs lack")

    def _fields(self) -> dict[str, Field[Any]]:
        return {field.name: field for field in fields(self.config) if field.init}

    def _read(self, knobs: Mapping[str, object]) -> tuple[Any, list[tuple[str, str]]]:
        types, known, values, problems = get_type_hints(self.config), self._fields(), dict(knobs), []
        for knob, value in knobs.items():
            if knob not in known:
                listing, hint = ", ".join(known) or "none", did_you_mean(knob, known)
                problems.append((knob, f"{knob}={value!r}: '{self.name}' has no such knob; its knobs: {listing}{hint}"))
            elif types[knob] is float and type(value) is int:
                values[knob] = float(value)
            elif types[knob] in (float, int, bool, str) and type(value) is not types[knob]:
                problems.append((knob, f"{knob}={value!r} must be of type {types[knob].__name__}"))
        for knob in self.required_knobs:
            if knob not in knobs:
                problems.append((knob, f"{knob} is missing: '{self.name}' has no default for it; give it a value"))
        if problems:
            return None, problems
        try:
            return self.config(**values), []
        except ValueError as error:
            return None, [("", f"'{self.name}': {error}")]


def _type_name(knob: Field[Any]) -> str:
    return knob.type if isinstance(knob.type, str) else inspect.formatannotation(knob.type)


def _default(knob: Field[Any]) -> str:
    if knob.default_factory is not MISSING:
        return repr(knob.default_factory())
    return REQUIRED if knob.default is MISSING else repr(knob.default)


Functions = TypeVar("Functions", bound=FunctionEntry)


class FunctionRegistry(Registry[Functions]):
    """Functions of one kind by name.

    Args:
        entry: the class of its entries.
    """

    def __init__(self, entry: type[Functions]) -> None:
        super().__init__(entry.KIND)
        self._entry = entry

    def registering(self, name: str, **declared: Any) -> Callable[[Function], Function]:
        """A decorator that registers a function with the ``declared`` fields of its entry, and hands it back as it is.

        Raises:
            RegistryError: the name is taken.
            ConfigError: something declared makes no sense.
        """

        def register(function: Function) -> Function:
            summary = (inspect.getdoc(function) or "").partition("\n")[0]
            self.register(name, self._entry(name=name, function=function, summary=summary, **declared))
            return function

        return register

    def alias(self, name: str, *, of: str, summary: str, config: type | None = None) -> None:
        """Gives the function of one name a second name.

        Args:
            name: the second one.
            of: the first one.
            summary: what the second name stands for.
            config: a subclass of the first one's config with other defaults or checks; by default the same config.

        Raises:
            RegistryError: the second name is taken, or there is no first one.
        """
        original = self.get(of)
        self.register(name, replace(original, name=name, summary=summary, config=config or original.config))

    def entries(self) -> list[Functions]:
        """Every entry by name."""
        return [self.get(name) for name in self.names()]


def missing_inputs(inputs: object, needs: Iterable[str]) -> list[str]:
    """Those of the needed attributes of ``inputs`` that are None, sorted."""
    return sorted(need for need in needs if getattr(inputs, need) is None)


def check_positive(**knobs: float) -> None:
    """A check for the ``__post_init__`` of a config.

    Raises:
        ValueError: a knob is not a positive number.
    """
    for name, value in knobs.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be a positive number")
