"""The cells of a grid, and what cells, values and runs are called; pure."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]
"""The value of each axis, e.g. ``{"policy_loss.name": "clip", "algorithm.iterations": 4}``."""


def cells_of(axes: Mapping[str, Sequence[Any]], keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Every combination of the values of these axes, by default of all, the last running fastest.

    Without an axis there is one empty cell.
    """
    chosen = list(axes if keys is None else keys)
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*(axes[key] for key in chosen))]


def agrees(cell: Cell, when: Cell) -> bool:
    """Whether a cell has these values; a list stands for any of its members.

    Example: ``{"policy_loss.name": ["clip", "dual_clip"]}`` agrees with every cell of either loss.
    """
    return all(cell[key] in (value if isinstance(value, list) else [value]) for key, value in when.items())


def run_name(cell: Cell, seed: int) -> str:
    """Of a run and its folder, e.g. ``clip-iterations4-seed1``."""
    return f"{cell_name(cell)}-seed{seed}" if cell else f"seed{seed}"


def cell_name(cell: Cell) -> str:
    """In names of runs and in messages, e.g. ``clip-iterations4``; empty where there are no axes."""
    return "-".join(_name_part(key, value) for key, value in cell.items())


def cell_label(cell: Cell) -> str:
    """All values of a cell for people, e.g. ``cfpo, iterations 4``."""
    return ", ".join(value_label(key, value) for key, value in cell.items())


def value_label(key: str, value: Any) -> str:
    """A value for people: ``cfpo``, ``iterations 4``, ``epsilon 0.1``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = [f"{inner}={setting}" for inner, setting in value.items() if inner != "name"]
        return " ".join([str(value.get("name", short_name(key))), *named])
    shown = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
    return f"{short_name(key)} {shown}"


def short_name(key: str) -> str:
    """The last part of a dotted key; the loss's name is no telling one."""
    return "loss" if key == "policy_loss.name" else key.rpartition(".")[2]


def _name_part(key: str, value: Any) -> str:
    """A text speaks for itself; anything else follows the name of its key."""
    text = value if isinstance(value, str) else key.rpartition(".")[2] + json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
