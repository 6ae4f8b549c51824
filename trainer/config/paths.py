"""Settings that name files: which they are, how a run records them so that they mean the same from any folder, and `~`.

A relative path in a recipe starts from the folder in which the command is called.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfpo_hybrid.plugins import is_plugin_file
from trainer.config.schema import Config, changed_settings, resolved

Place = Callable[[str], str]
"""Where a path leads, e.g. its absolute form."""


def _file(text: str, place: Place) -> str:
    return place(text)


def _folder_or_id(text: str, place: Place) -> str:
    """A model: what is no folder is an id of Hugging Face's."""
    return place(text) if os.path.isdir(os.path.expanduser(text)) else text


def _data_file(text: str, place: Place) -> str:
    """A data set by ``hub:NAME:SPLIT`` may be a folder."""
    if not text.startswith("hub:"):
        return place(text)
    _, name, *split = text.split(":")
    return ":".join(["hub", _folder_or_id(name, place), *split])


def _plugin(text: str, place: Place) -> str:
    return place(text) if is_plugin_file(text) else text


def _function(text: str, place: Place) -> str:
    """A reward: ``path/to/file.py:function``, or the name of a built-in one."""
    path, colon, function = text.rpartition(":")
    return f"{place(path)}:{function}" if colon else text


def _checkpoint(text: str, place: Place) -> str:
    return text if text in ("auto", "never") else place(text)


PATHS: dict[str, Callable[[str, Place], str]] = {
    "model.path": _folder_or_id,
    "data.train_files": _data_file,
    "data.val_files": _data_file,
    "data.val_sets": _data_file,
    "data.chat_template": _file,
    "policy_loss.plugins": _plugin,
    "reward.name": _function,
    "reward.further": _function,
    "trainer.run_dir": _file,
    "trainer.resume": _checkpoint,
}
"""Every key whose texts name files, and which part of such a text is the path."""


def recorded(config: Config) -> dict[str, Any]:
    """Plain settings as a run keeps them: a recipe of the same run from any folder of this machine."""
    return _placed(resolved(config), _absolute)


def really_changed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """As ``changed_settings``, but paths that lead to one file are equal however they are written."""
    return changed_settings(_placed(saved, _real), _placed(current, _real))


def with_home(config: Config) -> Config:
    """The configuration with the home folder in the place of ``~`` at the beginning of a path."""
    for key, rewrite in PATHS.items():
        section, name = key.split(".")
        old = getattr(config, section)
        if name in vars(old):
            new = _each(vars(old)[name], lambda text, rewrite=rewrite: rewrite(text, os.path.expanduser))
            config = replace(config, **{section: replace(old, **{name: new})})
    return config


def _placed(tree: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Nested settings with every path put through ``place``; keys that are not there are left out."""
    placed = dict(tree)
    for key, rewrite in PATHS.items():
        section, name = key.split(".")
        if name in (placed.get(section) or {}):
            new = _each(placed[section][name], lambda text, rewrite=rewrite: rewrite(text, place))
            placed[section] = {**placed[section], name: new}
    return placed


def _each(value: Any, rewrite: Callable[[str], str]) -> Any:
    """Every text in a value."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {name: _each(item, rewrite) for name, item in value.items()}
    return [_each(item, rewrite) for item in value] if isinstance(value, list | tuple) else value


def _absolute(path: str) -> str:
    """Symbolic links stay: they may lead elsewhere tomorrow."""
    return str(Path(os.path.expanduser(path)).absolute())


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))
