"""Where settings come from: a recipe (YAML) and ``key=value`` overrides, with the line or word each was written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfpo_hybrid.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """Settings from one place, not yet checked.

    Args:
        tree: nested mappings; a key may itself be dotted: ``{"actor": {"lr": 1e-6}}`` or ``{"actor.lr": 1e-6}``.
        name: of the place, for messages.
        lines: line of each dotted key, where there are lines.
    """

    tree: Mapping[Any, Any]
    name: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where a dotted key was written, e.g. ``recipe.yaml line 12``."""
        return f"{self.name} line {self.lines[key]}" if key in self.lines else self.name


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
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        # OmegaConf's own loader reads 1e-6 as a number and refuses a key that is written twice.
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if node is not None else {}
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"the {kind} '{file}' is not valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict) or isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"the {kind} '{file}' is no mapping; write sections of 'key: value', as in examples/")
    return Source(tree=tree, name=file.name, lines=_lines(node, ""))


def read_overrides(words: Sequence[str]) -> tuple[list[Source], list[str]]:
    """``key=value`` words, each as a source of its own, and a message for each word that is none."""
    sources: list[Source] = []
    problems: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            problems.append(f"'{word}' is no override; write key=value, e.g. trainer.total_steps=10")
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(f"the value of '{word}' is not valid YAML: {_one_line(error)}")
            continue
        assert isinstance(value, dict), "a dotlist is a mapping"
        sources.append(Source(tree={key.strip(): value["value"]}, name="command line"))
    return sources, problems


def _lines(node: yaml.Node | None, prefix: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines.update(_lines(value, f"{name}."))
    return lines


def _files_nearby(file: Path, kind: str) -> str:
    nearby = sorted(str(path) for path in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    return f"; {kind}s in that folder: {', '.join(nearby)}" if nearby else "; name a YAML file, as in examples/"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
