"""A user's reward function by ``path/to/file.py:function``: found and checked without running any of its code."""

import ast
from pathlib import Path

from cfpo_hybrid.errors import RewardError
from cfpo_hybrid.registry import nearest_name

MATH = "math"
"""The name of the built-in reward."""


def find_reward(name: str) -> str:
    """The reward that ``reward.name`` means: the built-in ``"math"``, or ``"/absolute/path.py:function"``.

    Raises:
        RewardError: the name is neither, the file does not exist or is not Python, or it does not define the function.
    """
    if name == MATH:
        return MATH
    path_text, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        hint = f"; did you mean '{MATH}'?" if nearest_name(name, [MATH]) else ""
        raise RewardError(f"reward.name is '{name}'; it must be '{MATH}' or 'path/to/file.py:function'{hint}")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise RewardError(f"reward.name is '{name}', but there is no file {path}")
    defined = _defined_names(path, name)
    if function not in defined:
        nearest = nearest_name(function, defined)
        hint = f"; did you mean '{nearest}'?" if nearest else f"; it defines {', '.join(sorted(defined)) or 'nothing'}"
        raise RewardError(f"reward.name is '{name}', but {path} defines no '{function}'{hint}")
    return f"{path}:{function}"


def _defined_names(path: Path, name: str) -> set[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise RewardError(f"reward.name is '{name}', but {path} is not valid Python: {error}") from error
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names
