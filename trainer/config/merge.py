"""Merges sources into a tree of dataclasses: every unknown key and every ill-typed value is found, not only the first."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import KeyValidationError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from cfpo_hybrid.errors import ConfigError
from trainer.config.foreign import foreign_key
from trainer.config.problem import Problem
from trainer.config.sources import Source

Root = TypeVar("Root")

ESCAPE = "; ${key} takes the value of another setting, and \\${ stands for these two characters"
"""The end of messages about interpolations."""

TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
NULL_WORDS = ("null", "Null", "NULL", "~")
"""What YAML takes for nothing."""
LIST_NAMES: dict[Any, str] = {
    str: "a list of texts",
    int: "a list of whole numbers",
    float: "a list of numbers",
    dict[str, str]: "a list of mappings of texts",
}


@dataclass(kw_only=True)
class Draft(Generic[Root]):
    """What the sources say, as far as it makes sense.

    Args:
        value: the dataclass; where a setting was wrong it has the default, or an empty value where there is none.
        problems: every mistake, in the order of the sources.
        origins: where each dotted key was written last.
        extras: settings under the open section, e.g. the knobs of a loss, by name.
        texts: how extras and the entries of mappings were written, by dotted key: whether one of them is a text is known
            to what they are the knobs of.
        doubtful: keys whose values are not what the user meant; checks of these would only repeat a mistake.
    """

    value: Root
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)

    def checked(self, found: Iterable[Problem] = ()) -> Root:
        """The value, if nothing is wrong with it.

        Args:
            found: what else is wrong; of a doubtful key it would only repeat a mistake, and is left out.

        Raises:
            ConfigError: every mistake at once, with where its settings were written.
        """
        problems = [*self.problems, *(problem for problem in found if self.doubtful.isdisjoint(problem.keys))]
        if problems:
            raise ConfigError([problem.located(self.origins) for problem in problems])
        return self.value


def merge(
    schema: type[Root],
    sources: Iterable[Source],
    *,
    open_section: str = "",
    closed: str = "",
    belongings: Mapping[str, str] | None = None,
) -> Draft[Root]:
    """Sets the sources' values on a fresh ``schema``, later sources over earlier ones.

    The entries of a mapping are settings of their own; an empty mapping, or null, takes out those of earlier sources.

    Args:
        schema: a dataclass of dataclasses, as OmegaConf takes.
        sources: what to set.
        open_section: a section that takes unknown keys too, as extras of what its ``name`` names. A later place that
            names something else drops the extras that earlier places wrote.
        closed: a key that no source may set.
        belongings: by key, another that holds for its value alone, e.g. the knobs of what it names. A later place that
            sets another value drops what earlier places wrote there.
    """
    merger = _Merger(schema, open_section, closed, belongings or {})
    for source in sources:
        merger.add(source.tree, "", source)
    return merger.draft()


class _Merger:
    def __init__(self, schema: type, open_section: str, closed: str, belongings: Mapping[str, str]) -> None:
        self._tree = OmegaConf.structured(schema)
        _make_writable(self._tree)
        self._types, self._sections = dict(setting_types(schema)), {"", *section_names(schema)}
        self._types.pop(closed, None)
        self._schema = schema
        self._open = f"{open_section}." if open_section else None
        self._belongings = belongings
        self._draft: Draft[Any] = Draft(value=None)
        self._places: dict[str, str] = {}
        self._perhaps_meant: set[str] = set()

    def add(self, tree: Any, prefix: str, source: Source) -> None:
        """Sets everything in a (nested) mapping."""
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key in self._sections:
                self._add_section(key, value, source)
                continue
            self._draft.origins[key] = source.origin(key)
            mapping = self._mapping_above(key)
            if key in self._types and isinstance(value, dict) and value and _is_mapping(self._types[key]):
                for inner, each in value.items():
                    self._draft.origins[f"{key}.{inner}"] = source.origin(f"{key}.{inner}")
                    self._set_entry(key, f"{key}.{inner}", each, source)
            elif key in self._types:
                self._set(key, value, source)
            elif mapping:
                self._set_entry(mapping, key, value, source)
            elif self._open is not None and key.startswith(self._open):
                self._draft.extras[key.removeprefix(self._open)] = value
                self._note(key, source)
            else:
                self._unknown(key, value, source)

    def draft(self) -> Draft[Any]:
        """The result; interpolations that lead nowhere and missing values are mistakes too."""
        for key in [*self._entries(), *self._types]:
            try:
                value = OmegaConf.select(self._tree, key)
                if OmegaConf.is_config(value):
                    OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            except MissingMandatoryValue:
                if key not in OmegaConf.missing_keys(self._tree):
                    self._problem(key, f"{key}: '???' stands for a value that is not set, and can be none")
                    self._clear(key)
            except OmegaConfBaseException as error:
                self._problem(key, f"{key}: {str(error).splitlines()[0]}{ESCAPE}")
                self._clear(key)
        for key in sorted(OmegaConf.missing_keys(self._tree)):
            if key not in self._draft.doubtful:
                self._problem(key, f"{key} is not set; it has no default: write it in the recipe or give {key}=...")
            self._clear(key)
        self._draft.value = OmegaConf.to_object(self._tree)
        # A key that a misspelt one meant still has its default, unless it was also written rightly somewhere.
        self._draft.doubtful |= self._perhaps_meant - self._draft.origins.keys()
        return self._draft

    def _entries(self) -> list[str]:
        """The entries of settings that are mappings, by dotted key."""
        mappings = [key for key, kind in self._types.items() if _is_mapping(kind)]
        return [f"{key}.{name}" for key in mappings for name in OmegaConf.select(self._tree, key) or ()]

    def _clear(self, key: str) -> None:
        """An empty value of the right type, so that there is a config for the other rules to look at."""
        mapping = self._mapping_above(key)
        kind = get_args(_bare(self._types[mapping]))[1] if mapping else self._types[key]
        OmegaConf.update(self._tree, key, _empty(kind))
        self._draft.doubtful.add(key)

    def _add_section(self, key: str, value: Any, source: Source) -> None:
        if isinstance(value, dict):
            self.add(value, f"{key}.", source)
        elif value is not None:
            keys = sorted(name for name in self._types if name.startswith(f"{key}."))
            self._draft.origins[key] = source.origin(key)
            self._problem(key, f"{key}={value!r}: {key} is a section; set one of its keys: {', '.join(keys)}")

    def _mapping_above(self, key: str) -> str | None:
        """The setting that holds a mapping, of which this key is an entry."""
        parts = key.split(".")
        above = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        return next((name for name in above if _is_mapping(self._types.get(name))), None)

    def _set(self, key: str, value: Any, source: Source) -> None:
        if value != OmegaConf.select(self._tree, key, throw_on_resolution_failure=False):
            self._drop_belongings(key, source.name)
        kind = self._types[key]
        try:
            value = as_written(kind, value, key, source.texts)
            OmegaConf.update(self._tree, key, value, merge=False)
        except (ValidationError, KeyValidationError):
            quotes = "; put a text in quotes" if _bare(kind) is str else ""
            self._problem(key, f"{key}={value!r} is not {_describe(kind)}{quotes}")
        except OmegaConfBaseException as error:
            self._problem(key, f"{key}={value!r} cannot be read: {str(error).splitlines()[0]}{ESCAPE}")
        if _is_mapping(kind):
            for name in [name for name in self._places if name.startswith(f"{key}.")]:
                self._forget(name)
        self._places[key] = source.name

    def _set_entry(self, mapping: str, key: str, value: Any, source: Source) -> None:
        """Sets one entry of a mapping and leaves the others."""
        inner = get_args(_bare(self._types[mapping]))[1]
        try:
            entry = {key.removeprefix(f"{mapping}."): as_written(inner, value, key, source.texts)}
            before = OmegaConf.select(self._tree, mapping)
            whole = before.copy() if isinstance(before, DictConfig) else {}
            OmegaConf.update(self._tree, mapping, OmegaConf.merge(whole, entry), merge=False)
        except OmegaConfBaseException:
            self._problem(key, f"{key}={value!r} is not {_describe(inner)}")
        self._note(key, source)

    def _drop_belongings(self, key: str, place: str) -> None:
        """Drops what earlier places wrote for the value that a key had."""
        if self._open is not None and key == f"{self._open}name":
            for name in [name for name in self._draft.extras if self._places[f"{self._open}{name}"] != place]:
                del self._draft.extras[name]
                self._forget(f"{self._open}{name}")
        other = self._belongings.get(key)
        if other is None:
            return
        value = OmegaConf.select(self._tree, other)
        if isinstance(value, DictConfig):
            kept = {name: value._get_node(name) for name in value if self._places.get(f"{other}.{name}") == place}
            for name in value.keys() - kept.keys():
                self._forget(f"{other}.{name}")
            OmegaConf.update(self._tree, other, kept, merge=False)
        elif other in self._places and self._places[other] != place:
            OmegaConf.update(self._tree, other, _default(self._schema, other), merge=False)
            self._forget(other)

    def _note(self, key: str, source: Source) -> None:
        """Where an extra or an entry was written last, and how."""
        self._places[key] = source.name
        self._draft.texts.pop(key, None)
        if key in source.texts:
            self._draft.texts[key] = source.texts[key]

    def _forget(self, key: str) -> None:
        for known in (self._places, self._draft.origins, self._draft.texts):
            known.pop(key, None)

    def _unknown(self, key: str, value: Any, source: Source) -> None:
        parent = key.rpartition(".")[0]
        if parent in self._types:
            self._problem(key, f"unknown key '{key}': {parent} holds {_describe(self._types[parent])}, no keys")
            return
        last_names = {name.rpartition(".")[2] for name in self._types}
        inner = list(_leaves(value, f"{key}.")) if isinstance(value, dict) else []
        if any(foreign_key(name, last_names) for name, _ in inner):
            for name, each in inner:
                self._draft.origins[name] = source.origin(name)
                self._unknown(name, each, source)
            return
        foreign = foreign_key(key, last_names)
        if foreign is not None:
            self._perhaps_meant.update(foreign.keys)
            self._problem(key, f"unknown key '{key}': {foreign.answer(value, source.texts.get(key))}")
            return
        near = nearest_keys(key, [*self._types, *self._sections])
        self._perhaps_meant.update(near)
        sections = sorted(name for name in self._sections if name and "." not in name)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; sections: {', '.join(sections)}"
        self._problem(key, f"unknown key '{key}'{hint}")

    def _problem(self, key: str, message: str) -> None:
        self._draft.problems.append(Problem((key,), message))
        self._draft.doubtful.add(key)


def as_written(kind: Any, value: Any, key: str, texts: Mapping[str, str]) -> Any:
    """A value as its type has it: a text is what was written, whatever YAML makes of it.

    Null clears what may be null, and a mapping. One value for a list is a list of one.

    Args:
        kind: the type.
        value: by YAML.
        key: dotted; the items of a list are numbered below it.
        texts: how scalars were written, by dotted key.

    Raises:
        ValidationError: a list or a mapping where there can be none.
    """
    bare = _bare(kind)
    if bare is str:
        text = texts.get(key)
        nothing = ("", *NULL_WORDS) if bare is not kind else ("",)
        if value is None and (text or "").strip() in nothing:
            return None
        value = value if text is None else text
    if get_origin(bare) is list and value is not None:
        (item,) = get_args(bare)
        if not isinstance(value, list):
            if isinstance(value, str) and value.startswith("[") and key in texts:
                raise ValidationError("a list that does not end")
            return [as_written(item, value, key, texts)]
        return [as_written(item, each, f"{key}.{number}", texts) for number, each in enumerate(value)]
    if get_origin(bare) is dict and (value is not None or bare is kind):
        if not isinstance(value, dict | NoneType):
            raise ValidationError("no mapping")
        inner = get_args(bare)[1]
        return {str(name): as_written(inner, each, f"{key}.{name}", texts) for name, each in (value or {}).items()}
    if bare in TYPE_NAMES and isinstance(value, dict | list):
        raise ValidationError("no single value")
    return value


def setting_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """The type of each setting of a dataclass of dataclasses, by dotted key."""
    hints, found = get_type_hints(schema), {}
    for item in dataclasses.fields(schema):
        key, kind = f"{prefix}{item.name}", hints[item.name]
        found |= setting_types(kind, f"{key}.") if _is_section(kind) else {key: kind}
    return found


def section_names(schema: type, prefix: str = "") -> list[str]:
    """The sections of a dataclass of dataclasses, inner ones by their dotted keys."""
    kinds = {f"{prefix}{name}": kind for name, kind in get_type_hints(schema).items() if _is_section(kind)}
    return [*kinds, *(inner for key, kind in kinds.items() for inner in section_names(kind, f"{key}."))]


def is_text(kind: Any) -> bool:
    """Whether a setting of this type is a text, or null."""
    return _bare(kind) is str


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """The known keys that a wrong one most likely means: the same last name elsewhere first, else the most similar.

    Example: ``nearest_keys("actor.tensor_parallel_size", ...)`` is both ``actor.megatron.tensor_parallel_size`` and
    ``rollout.tensor_parallel_size``.
    """
    head, _, name = key.rpartition(".")
    same_name = sorted(other for other in known if other and other.rpartition(".")[2] == name)
    below = [other for other in same_name if head and other.startswith(f"{head}.")]
    if below or same_name:
        return below or same_name
    siblings = [other for other in known if other and other.rpartition(".")[0] == head]
    names = get_close_matches(name, [other.rpartition(".")[2] for other in siblings], n=1, cutoff=0.6)
    if names:
        return [f"{head}.{names[0]}" if head else names[0]]
    return get_close_matches(key, [other for other in known if other], n=1, cutoff=0.5)


def _is_mapping(kind: Any) -> bool:
    return get_origin(_bare(kind)) is dict


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The settings of a nested mapping by dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _default(schema: Any, key: str) -> Any:
    """Of a dotted key."""
    name, _, inner = key.partition(".")
    return _default(get_type_hints(schema)[name], inner) if inner else getattr(schema(), name)


def _make_writable(tree: DictConfig) -> None:
    """Frozen dataclasses become read-only nodes, which no value could be set on."""
    OmegaConf.set_readonly(tree, False)
    for name in tree:
        if not OmegaConf.is_missing(tree, name) and isinstance(tree[name], DictConfig):
            _make_writable(tree[name])


def _bare(kind: Any) -> Any:
    """The type without ``| None``."""
    if isinstance(kind, UnionType):
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _describe(kind: Any) -> str:
    bare = _bare(kind)
    name = LIST_NAMES[get_args(bare)[0]] if get_origin(bare) is list else TYPE_NAMES.get(bare, "a mapping")
    return f"{name} or null" if bare is not kind else name


def _empty(kind: Any) -> Any:
    bare = _bare(kind)
    return None if bare is not kind else (get_origin(bare) or bare)()
