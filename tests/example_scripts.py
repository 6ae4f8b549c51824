"""Loads the examples' scripts as modules: they stand in folders that are not packages."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(path: str) -> ModuleType:
    """The module of a script below ``examples/``; scripts beside it can be imported by it, as when it is run."""
    file = EXAMPLES / path
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    if file.stem not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
    return sys.modules[file.stem]
