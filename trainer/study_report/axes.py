"""Which axis of a study is a line, which a column of panels; and the names of its values and cells."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfpo_hybrid.errors import ConfigError

PRESSURE = ("algorithm.iterations", "algorithm.batch_ratio")
"""The two sources of off-policy pressure: columns of the paper's figures, in this order of preference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrangement:
    """The part that each axis plays.

    Example: axes policy_loss.name, algorithm.iterations and algorithm.batch_ratio: a line a loss, a column a number of
    iterations, and one figure for each batch ratio.

    Args:
        series: the axis with a line for each value; None when there is no axis.
        columns: the axis with a column of panels for each value; None when there is no second axis.
        others: the remaining axes.
    """

    series: str | None
    columns: str | None
    others: tuple[str, ...]

    @classmethod
    def of(cls, axes: Mapping[str, Any], series: str | None = None, columns: str | None = None) -> "Arrangement":
        """The arrangement that is asked for, or else lines for the losses and columns for the pressure.

        Raises:
            ConfigError: an axis that the study does not have, or one named twice.
        """
        problems = [
            f"--{option} {key}: the study has no such axis; it has {', '.join(axes) or 'none'}"
            for option, key in (("series", series), ("columns", columns))
            if key is not None and key not in axes
        ]
        if series is not None and series == columns:
            problems.append(f"--series and --columns both name {series}; name two axes")
        if problems:
            raise ConfigError(problems)
        line = series or _default_series([key for key in axes if key != columns])
        rest = [key for key in axes if key != line]
        column = columns or next((key for key in (*PRESSURE, *rest) if key in rest), None)
        return cls(series=line, columns=column, others=tuple(key for key in rest if key != column))


def _default_series(keys: Sequence[str]) -> str | None:
    losses = [key for key in keys if key.startswith("policy_loss")]
    free = [key for key in keys if key not in PRESSURE]
    return next(iter([*losses, *free, *keys]), None)


def short_name(key: str) -> str:
    """The last part of a dotted key; the loss's name is no telling one."""
    return "loss" if key == "policy_loss.name" else key.rpartition(".")[2]


def value_label(key: str, value: Any) -> str:
    """A value for people: ``cfpo``, ``iterations 4``, ``epsilon 0.1``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = [f"{inner}={setting}" for inner, setting in value.items() if inner != "name"]
        return " ".join([str(value.get("name", short_name(key))), *named])
    shown = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
    return f"{short_name(key)} {shown}"


def cell_label(cell: Mapping[str, Any]) -> str:
    """All values of a cell, e.g. ``cfpo, iterations 4``."""
    return ", ".join(value_label(key, value) for key, value in cell.items())


def cells(axes: Mapping[str, Sequence[Any]], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of these axes; one empty cell for no axis."""
    for values in itertools.product(*(axes[key] for key in keys)):
        yield dict(zip(keys, values, strict=True))
