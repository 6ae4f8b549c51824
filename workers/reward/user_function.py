"""A user's reward function by ``path/to/file.py:function``: found and checked without running any of its code."""

import ast
from pathlib import Path

from cfpo_hybrid.errors import RewardError
from cfpo_hybrid.registry import nearest_name
from workers.reward.grader import ARGUMENTS

MATH = "math"
"""The name of the built-in reward."""


def find_reward(name: str, key: str = "reward.name") -> str:
    """The reward that a setting means: the built-in ``"math"``, or ``"/absolute/path.py:function"``.

    Raises:
        RewardError: the name is neither, the file does not exist or is not Python, it does not define the function, or
            the function cannot be called with the four arguments.
    """
    if name == MATH:
        return MATH
    path_text, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        hint = f"; did you mean '{MATH}'?" if nearest_name(name, [MATH]) else ""
        raise RewardError(f"{key} is '{name}'; it must be '{MATH}' or 'path/to/file.py:function'{hint}")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise RewardError(f"{key} is '{name}', but there is no file {path}")
    defined = _defined_names(path, name, key)
    if function not in defined:
        nearest = nearest_name(function, defined)
        hint = f"; did you mean '{nearest}'?" if nearest else f"; it defines {', '.join(sorted(defined)) or 'nothing'}"
        raise RewardError(f"{key} is '{name}', but {path} defines no '{function}'{hint}")
    mistake = _mistake_in(defined[function])
    if mistake:
        raise RewardError(
            f"{key} is '{name}', but {mistake}; it is called as {function}({', '.join(ARGUMENTS)}) and returns a number"
        )
    return f"{path}:{function}"


def _defined_names(path: Path, name: str, key: str) -> dict[str, ast.stmt]:
    """The names of a file and what defines them last."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise RewardError(f"{key} is '{name}', but {path} is not valid Python: {error}") from error
    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
    return names


def _mistake_in(definition: ast.stmt) -> str:
    """Why what is defined cannot be called with ``ARGUMENTS``, as far as the text of the file tells; "" where it can.

    What a decorator or an import leaves is seen when the function is loaded.
    """
    if isinstance(definition, ast.ClassDef):
        return f"'{definition.name}' is a class"
    value = definition.value if isinstance(definition, ast.Assign | ast.AnnAssign) else definition
    if isinstance(value, ast.AsyncFunctionDef):
        return f"'{value.name}' is async"
    if isinstance(value, ast.Constant):
        return f"it is the constant {value.value!r:.50}"
    if not isinstance(value, ast.FunctionDef | ast.Lambda) or (
        isinstance(value, ast.FunctionDef) and value.decorator_list
    ):
        return ""
    arguments = value.args
    names = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]]
    required = len(names) - len(arguments.defaults)
    by_name = [
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    if by_name:
        return f"it needs {', '.join(by_name)} by name"
    if required > len(ARGUMENTS) or (len(names) < len(ARGUMENTS) and arguments.vararg is None):
        return f"it takes {len(names)} arguments ({', '.join(names)}), not {len(ARGUMENTS)}"
    return ""
