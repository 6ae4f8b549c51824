"""Heat maps of a run: a row for each optimizer step within a rollout, a column for each rollout step.

What a mean over the updates of a rollout hides shows here: whether clipping, KL or the effective sample size go wrong in
the first pass over the samples, with each pass, or at the end of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from trainer.figures.drawing import INK, ROUNDING, panel_grid

Updates = Sequence[Mapping[str, Any]]
MOST_TICKS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """One metric.

    Args:
        metric: its name in ``updates.jsonl``.
        title: what is shown, with the unit.
        limits: values at the ends of the colour scale; those of the data by default.
    """

    metric: str
    title: str
    limits: tuple[float | None, float | None] = (None, None)


HEAT_MAPS = (
    HeatMap(metric="actor/clip_fraction", title="clip fraction, as PPO would count it", limits=(0.0, None)),
    HeatMap(metric="actor/kl_k3", title="KL to the policy that sampled (k3), nats", limits=(0.0, None)),
    HeatMap(metric="actor/ess", title="effective sample size, share", limits=(None, 1.0)),
    HeatMap(metric="actor/entropy", title="entropy, nats"),
    HeatMap(metric="actor/tv", title="total variation to the policy that sampled", limits=(0.0, None)),
    HeatMap(metric="actor/ratio_q99", title="99 % quantile of the ratio"),
    HeatMap(metric="actor/zero_gradient_share", title="tokens without gradient", limits=(0.0, None)),
    HeatMap(metric="actor/corrective_share", title="tokens whose gradient opposes the advantage", limits=(0.0, None)),
    HeatMap(metric="actor/grad_norm", title="gradient norm"),
    HeatMap(metric="actor/grad_cosine", title="cosine to the previous gradient", limits=(-1.0, 1.0)),
    HeatMap(metric="mismatch/numeric_rms", title="numeric mismatch of the engines, nats", limits=(0.0, None)),
    HeatMap(metric="correction/ess", title="effective sample size of the correction, share", limits=(None, 1.0)),
)


def draw_heat_maps(updates: Updates, *, title: str) -> Figure | None:
    """A figure of all heat maps; None where a rollout has one optimizer step, or nothing was measured.

    Args:
        updates: lines of ``updates.jsonl``.
        title: of the figure.
    """
    placed = [line for line in updates if "iteration" in line and "mini_batch" in line]
    if len({_place(line) for line in placed}) < 2:
        return None
    shown = [heat_map for heat_map in HEAT_MAPS if any(line.get(heat_map.metric) is not None for line in placed)]
    if not shown:
        return None
    figure, panels = panel_grid(len(shown), columns=2, inches=(6.5, 2.9), margin=0.4, title=title)
    for axes, heat_map in zip(panels, shown, strict=True):
        _draw(figure, axes, heat_map, placed)
    return figure


def matrix_of(updates: Updates, metric: str) -> tuple[NDArray[np.float64], list[tuple[int, int]], list[int]]:
    """The values of a metric by optimizer step and rollout step, NaN where there is none.

    Returns:
        ``[place, step]``, the places in a rollout (iteration and mini-batch) from first to last, and all steps.
    """
    places = sorted({_place(line) for line in updates})
    steps = [int(line["step"]) for line in updates]
    columns = range(min(steps), max(steps) + 1)
    row_of = {place: row for row, place in enumerate(places)}
    matrix = np.full((len(places), len(columns)), np.nan)
    for line in updates:
        value = line.get(metric)
        matrix[row_of[_place(line)], int(line["step"]) - columns[0]] = np.nan if value is None else value
    matrix[~np.isfinite(matrix)] = np.nan
    return matrix, places, list(columns)


def _draw(figure: Figure, axes: Axes, heat_map: HeatMap, updates: Updates) -> None:
    matrix, places, steps = matrix_of(updates, heat_map.metric)
    low, high = _limits(matrix, heat_map)
    colours = "RdBu" if heat_map.limits == (-1.0, 1.0) else "viridis"
    edges = (steps[0] - 0.5, steps[-1] + 0.5, len(places) - 0.5, -0.5)
    image = axes.imshow(matrix, aspect="auto", interpolation="nearest", extent=edges, cmap=colours, vmin=low, vmax=high)
    numbers = ScalarFormatter(useOffset=False)
    figure.colorbar(image, ax=axes, pad=0.01, format=numbers).ax.tick_params(labelsize=7, colors=INK)
    every = math.ceil(len(places) / MOST_TICKS)
    axes.set_yticks(range(0, len(places), every), [f"{each[0]}.{each[1]}" for each in places[::every]])
    axes.set_title(heat_map.title, loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rollout step", fontsize=8, color=INK)
    axes.set_ylabel("iteration.mini-batch", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK)


def _limits(matrix: NDArray[np.float64], heat_map: HeatMap) -> tuple[float, float]:
    """The ends of the colour scale; values that differ by rounding alone have one colour."""
    known = matrix[np.isfinite(matrix)]
    data = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low, high = (given if given is not None else found for given, found in zip(heat_map.limits, data, strict=True))
    smallest = ROUNDING * max(1.0, abs(low), abs(high))
    if high - low > smallest:
        return low, high
    wider = max(abs(low) / 10, abs(high) / 10, 1000 * ROUNDING)
    bottom, top = heat_map.limits
    return low - (0.0 if bottom is not None else wider), high + (0.0 if top is not None else wider)


def _place(line: Mapping[str, Any]) -> tuple[int, int]:
    return int(line["iteration"]), int(line["mini_batch"])
