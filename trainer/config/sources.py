"""Where settings come from: a recipe (YAML) and ``key=value`` overrides, with the line or word each was written in.

YAML makes a number of ``1e3`` and false of ``no``. Whether a setting is a text is known to its schema alone, so a source
has both: the value that YAML makes of a scalar, and the scalar as it was written.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cfpo_hybrid.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Source:
    """Settings from one place, not yet checked.

    Args:
        tree: nested mappings; a key may itself be dotted: ``{"actor": {"lr": 1e-6}}`` or ``{"actor.lr": 1e-6}``.
        name: of the place, for messages.
        lines: line of each dotted key, where there are lines.
        texts: how each scalar was written, by dotted key; items of a list by their number: ``data.train_files.0``. An
            override has its whole value here. What is missing was written as it is, e.g. in quotes.
    """

    tree: Mapping[Any, Any]
    name: str
    lines: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where a dotted key was written, e.g. ``recipe.yaml line 12``."""
        return f"{self.name} line {self.lines[key]}" if key in self.lines else self.name

    def below(self, prefix: str, tree: Mapping[Any, Any]) -> "Source":
        """The settings under a dotted key, as a source of their own.

        Args:
            prefix: the key.
            tree: what is under it.
        """
        start = f"{prefix}."
        lines = {key.removeprefix(start): line for key, line in self.lines.items() if key.startswith(start)}
        texts = {key.removeprefix(start): text for key, text in self.texts.items() if key.startswith(start)}
        return Source(tree=tree, name=self.name, lines=lines, texts=texts)


def read_recipe(path: str | Path, kind: str = "recipe") -> Source:
    """A recipe, or another YAML file of settings.

    Args:
        path: the file.
        kind: what messages call it.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no {kind} '{file}'{_files_nearby(file, kind)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the {kind} '{file}' cannot be read: {error}") from None
    try:
        document = _Document(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the {kind} '{file}' is not valid YAML: {_one_line(error)}") from None
    if not isinstance(document.value, dict):
        raise ConfigError(f"the {kind} '{file}' is no mapping; write sections of 'key: value', as in examples/")
    return Source(tree=document.value, name=file.name, lines=document.lines, texts=document.texts)


def read_overrides(words: Sequence[str]) -> tuple[list[Source], list[str]]:
    """``key=value`` words, each as a source of its own, and a message for each word that is none.

    A value that is no YAML is a text.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"'{word}' is no override; write key=value, e.g. trainer.total_steps=10")
            continue
        try:
            document = _Document(text, key)
        except (yaml.YAMLError, ValueError):
            sources.append(Source(tree={key: text}, name=COMMAND_LINE, texts={key: text}))
            continue
        texts = document.texts if document.is_quoted else {**document.texts, key: text}
        sources.append(Source(tree={key: document.value}, name=COMMAND_LINE, texts=texts))
    return sources, problems


def settings_text(settings: Mapping[str, Any]) -> str:
    """Plain nested settings as a recipe of the same settings: every text is read as a text again."""
    return yaml.dump(_escaped(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def settings_of(text: str) -> dict[str, Any]:
    """The settings that ``settings_text`` wrote; empty for an empty text.

    Raises:
        ValueError: the text is no mapping.
        yaml.YAMLError: it is no YAML.
    """
    value = _Document(text).value
    if not isinstance(value, dict):
        raise ValueError("no mapping")
    return _unescaped(value)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 in which 1e-6 is a number, and a date is a text: no setting is one."""


class _Dumper(yaml.SafeDumper):
    """Puts quotes around what the loader would not read as a text."""


FLOAT, MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
NO_VALUES = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Which YAML takes for ends of lines, so that they must be written as escapes."""

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NO_VALUES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        FLOAT, re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"), list("-+.0123456789")
    )


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if LINE_ENDS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


class _Document:
    """A YAML text as values, with the line and the own words of each; names in mappings are texts whatever YAML reads.

    Args:
        text: the YAML; nothing is an empty mapping in a file, and null as the value of a key.
        key: whose value it is.

    Raises:
        yaml.YAMLError: it is no YAML, or a name stands in a mapping twice.
        ValueError: a number that is none.
    """

    def __init__(self, text: str, key: str = "") -> None:
        self.lines: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self._loader = _Loader(text)
        try:
            node = self._loader.get_single_node()
            self.is_quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
            empty: Any = None if key else {}
            self.value = empty if node is None else self._value(node, key)
        finally:
            self._loader.dispose()

    def _value(self, node: yaml.Node, key: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            if node.style is None:
                self.texts[key] = node.value
            return node.value if node.tag == MERGE else self._loader.construct_object(node)
        start = f"{key}." if key else ""
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, f"{start}{number}") for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        found: dict[str, Any] = {}
        for name, item in self._entries(node):
            self.lines[f"{start}{name.value}"] = name.start_mark.line + 1
            found[name.value] = self._value(item, f"{start}{name.value}")
        return found

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """What a mapping holds: its own entries after those that it takes over by ``<<``."""
        own: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for name, item in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", name.start_mark)
            if name.tag == MERGE:
                for other in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    if not isinstance(other, yaml.MappingNode):
                        raise yaml.constructor.ConstructorError(None, None, "<< takes mappings", other.start_mark)
                    yield from self._entries(other)
                continue
            if name.value in own:
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping",
                    node.start_mark,
                    f"found duplicate key {name.value}",
                    name.start_mark,
                )
            own[name.value] = (name, item)
        yield from own.values()


def _escaped(value: Any) -> Any:
    """With every ``${`` marked as no interpolation."""
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _unescaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\+)\$\{", lambda found: "\\" * (len(found[1]) // 2) + "${", value)


def _files_nearby(file: Path, kind: str) -> str:
    nearby = sorted(str(path) for path in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    return f"; {kind}s in that folder: {', '.join(nearby)}" if nearby else "; name a YAML file, as in examples/"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
