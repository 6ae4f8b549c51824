"""Plugins: modules by name or Python files by path, loaded once a process, that register losses and advantages."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from cfpo_hybrid.errors import ConfigError


def is_plugin_file(plugin: str) -> bool:
    """Whether a plugin is a file; anything else is the name of a module."""
    return plugin.endswith(".py") or "/" in plugin


def resolve_plugins(plugins: Iterable[str]) -> list[str]:
    """File paths, from the current folder, made absolute, so that workers in another one find them; module names as they are.

    Raises:
        ConfigError: files that do not exist, all of them at once.
    """
    resolved = [str(Path(plugin).resolve()) if is_plugin_file(plugin) else plugin for plugin in plugins]
    missing = [path for path in resolved if is_plugin_file(path) and not Path(path).is_file()]
    if missing:
        raise ConfigError([f"plugin {path} is no file; give a .py file" for path in missing])
    return resolved


def load_plugins(plugins: Iterable[str]) -> None:
    """Imports every plugin, so that its decorated functions are registered; a second call does nothing.

    Raises:
        ConfigError: a file is missing, or a plugin raised while it was imported (its error is the cause).
    """
    for plugin in resolve_plugins(plugins):
        try:
            _load_file(Path(plugin)) if is_plugin_file(plugin) else importlib.import_module(plugin)
        except Exception as error:  # a plugin is the user's code: it may raise anything at all
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"plugin {plugin} cannot be loaded: {reason}") from error


def _load_file(path: Path) -> None:
    # The path's digest tells two files of one name apart, and makes loading twice a look-up.
    name = f"cfpo_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
