"""The cells of a grid, and what their runs are called; pure."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One point of the grid.

    Args:
        values: by axis, e.g. ``{"policy_loss.name": "clip", "algorithm.iterations": 4}``.
    """

    values: dict[str, Any]

    @property
    def name(self) -> str:
        """For people and for folders, e.g. ``clip-iterations4``; empty where there are no axes."""
        return "-".join(_part(key, value) for key, value in self.values.items())

    def run_name(self, seed: int) -> str:
        """Of the run with that seed, e.g. ``clip-iterations4-seed1``."""
        return f"{self.name}-seed{seed}" if self.values else f"seed{seed}"

    def agrees_with(self, values: Mapping[str, Any]) -> bool:
        """Whether the cell has these values; a list stands for any of its members.

        Example: ``{"policy_loss.name": ["clip", "dual_clip"]}`` agrees with every cell of either loss.
        """
        return all(self.values[key] in _any_of(value) for key, value in values.items())


def cells_of(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination, the last axis running fastest."""
    return [Cell(values=dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def _any_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _part(key: str, value: Any) -> str:
    """A text speaks for itself; anything else follows the name of its key."""
    text = value if isinstance(value, str) else key.rpartition(".")[2] + json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
