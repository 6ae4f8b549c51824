"""Merges sources into a tree of dataclasses: every unknown key and every ill-typed value is found, not only the first."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from cfpo_hybrid.errors import ConfigError
from trainer.config.problem import Problem
from trainer.config.sources import Source

Root = TypeVar("Root")

TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
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
        doubtful: keys whose values are not what the user meant; checks of these would only repeat a mistake.
    """

    value: Root
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
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


def merge(schema: type[Root], sources: Iterable[Source], *, open_section: str = "", closed: str = "") -> Draft[Root]:
    """Sets the sources' values on a fresh ``schema``, later sources over earlier ones.

    Args:
        schema: a dataclass of dataclasses, as OmegaConf takes.
        sources: what to set.
        open_section: a section that takes unknown keys too, as extras of what its ``name`` names. A later place that
            names something else drops the extras that earlier places wrote.
        closed: a key that no source may set.
    """
    merger = _Merger(schema, open_section, closed)
    for source in sources:
        merger.add(source.tree, "", source)
    return merger.draft()


class _Merger:
    def __init__(self, schema: type, open_section: str, closed: str) -> None:
        self._tree = OmegaConf.structured(schema)
        _make_writable(self._tree)
        self._sections = {""}
        self._types: dict[str, Any] = {}
        self._collect(schema, "")
        self._types.pop(closed, None)
        self._open = f"{open_section}." if open_section else None
        self._draft: Draft[Any] = Draft(value=None)
        self._place_of_extra: dict[str, str] = {}
        self._perhaps_meant: set[str] = set()

    def add(self, tree: Any, prefix: str, source: Source) -> None:
        """Sets everything in a (nested) mapping."""
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key in self._sections:
                self._add_section(key, value, source)
                continue
            self._draft.origins[key] = source.origin(key)
            if get_origin(self._types.get(key)) is dict and isinstance(value, dict) and value:
                self.add(value, f"{key}.", source)
            elif self._kind_of(key) is not None:
                self._set(key, value, source.name)
            elif self._open is not None and key.startswith(self._open):
                self._draft.extras[key.removeprefix(self._open)] = value
                self._place_of_extra[key.removeprefix(self._open)] = source.name
            else:
                self._unknown(key)

    def draft(self) -> Draft[Any]:
        """The result; interpolations that lead nowhere and missing values are mistakes too."""
        entries = [f"{key}.{name}" for key in self._types for name in self._names_in(key)]
        for key in [*entries, *self._types]:
            try:
                node = OmegaConf.select(self._tree, key)
                if OmegaConf.is_config(node):
                    OmegaConf.to_container(node, resolve=True)
            except OmegaConfBaseException as error:
                self._problem(key, f"{key}: {str(error).splitlines()[0]}")
                self._clear(key)
        for key in sorted(OmegaConf.missing_keys(self._tree)):
            if key not in self._draft.doubtful:
                self._problem(key, f"{key} is not set; it has no default: write it in the recipe or give {key}=...")
            self._clear(key)
        self._draft.value = OmegaConf.to_object(self._tree)
        # A key that a misspelt one meant still has its default, unless it was also written rightly somewhere.
        self._draft.doubtful |= self._perhaps_meant - self._draft.origins.keys()
        return self._draft

    def _clear(self, key: str) -> None:
        """An empty value of the right type, so that there is a config for the other rules to look at."""
        OmegaConf.update(self._tree, key, _empty(self._kind_of(key)))
        self._draft.doubtful.add(key)

    def _kind_of(self, key: str) -> Any:
        """The type of a setting, or of an entry of one that is a mapping; None where there is no such setting."""
        mapping = self._types.get(key.rpartition(".")[0])
        return get_args(mapping)[1] if get_origin(mapping) is dict else self._types.get(key)

    def _names_in(self, key: str) -> list[str]:
        """The entries of a setting that is a mapping."""
        return [str(name) for name in OmegaConf.select(self._tree, key)] if get_origin(self._types[key]) is dict else []

    def _collect(self, schema: type, prefix: str) -> None:
        hints = get_type_hints(schema)
        for item in dataclasses.fields(schema):
            key, kind = f"{prefix}{item.name}", hints[item.name]
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                self._sections.add(key)
                self._collect(kind, f"{key}.")
            else:
                self._types[key] = kind

    def _add_section(self, key: str, value: Any, source: Source) -> None:
        if isinstance(value, dict):
            self.add(value, f"{key}.", source)
        elif value is not None:
            keys = sorted(name for name in self._types if name.startswith(f"{key}."))
            self._draft.origins[key] = source.origin(key)
            self._problem(key, f"{key}={value!r}: {key} is a section; set one of its keys: {', '.join(keys)}")

    def _set(self, key: str, value: Any, place: str) -> None:
        if self._open is not None and key == f"{self._open}name" and value != OmegaConf.select(self._tree, key):
            for name in [name for name, written in self._place_of_extra.items() if written != place]:
                del self._draft.extras[name], self._place_of_extra[name]
        kind = self._kind_of(key)
        is_list = get_origin(_bare(kind)) is list
        if is_list and isinstance(value, str | int | float):
            value = [value]  # data.train_files=math.jsonl means a list of one
        try:
            nested = list if dict[str, str] in get_args(_bare(kind)) else dict | list
            if is_list and isinstance(value, list) and any(isinstance(item, nested) for item in value):
                raise ValidationError("nested list")
            OmegaConf.update(self._tree, key, value, merge=value != {})
        except (ValidationError, OmegaConfBaseException):
            self._problem(key, f"{key}={value!r} is not {_describe(kind)}")

    def _unknown(self, key: str) -> None:
        parent = key.rpartition(".")[0]
        if parent in self._types:
            self._problem(key, f"unknown key '{key}': {parent} holds {_describe(self._types[parent])}, no keys")
            return
        near = nearest_keys(key, [*self._types, *self._sections])
        self._perhaps_meant.update(near)
        sections = sorted(name for name in self._sections if name and "." not in name)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; sections: {', '.join(sections)}"
        self._problem(key, f"unknown key '{key}'{hint}")

    def _problem(self, key: str, message: str) -> None:
        self._draft.problems.append(Problem((key,), message))
        self._draft.doubtful.add(key)


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


def _make_writable(tree: DictConfig) -> None:
    """Frozen dataclasses become read-only nodes, which no value could be set on."""
    OmegaConf.set_readonly(tree, False)
    for name in tree:
        if not OmegaConf.is_missing(tree, name) and isinstance(tree._get_node(name), DictConfig):
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
