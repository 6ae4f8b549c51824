"""Plots of a run as PNG: reward, accuracy, clip fraction, entropy, KL, response length, time by stage, heat maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cfpo_hybrid.errors import DataError
from trainer.figures.drawing import COLORS, INK, line_look, panel_grid, save_png, show_percent, style_axes
from trainer.figures.heat_maps import draw_heat_maps
from trainer.run.directory import RunDirectory
from trainer.run.metrics import stage_seconds, stage_totals
from trainer.run.validation_names import results_by_set

_RANGE_LABEL = "range of the updates in a step"
Lines = Sequence[Mapping[str, Any]]
Points = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """One plot of metrics by rollout step.

    Args:
        name: of the file.
        title: what is shown.
        unit: label of the vertical axis.
        curves: name of each metric in the logs, and its label in the legend.
        smooth: draws a running mean over the pale raw curve of a long run.
        percent: shows shares as percentages.
    """

    name: str
    title: str
    unit: str
    curves: Mapping[str, str]
    smooth: bool = False
    percent: bool = False


CLIP_FRACTIONS = {
    "actor/clip_fraction": "all tokens",
    "actor/clip_fraction_positive": "advantage > 0",
    "actor/clip_fraction_negative": "advantage < 0",
}
REWARD_PLOT = CurvePlot("reward", "Training reward", "mean reward", {"reward/mean": "reward"}, smooth=True)
ACTOR_PLOTS = (
    CurvePlot(
        "clip_fraction", "Clip fraction (as PPO would count it)", "share of tokens", CLIP_FRACTIONS, percent=True
    ),
    CurvePlot("entropy", "Policy entropy", "nats a token", {"actor/entropy": "entropy"}),
    CurvePlot("kl", "KL to the policy that sampled", "nats a token", {"actor/kl_k1": "k1", "actor/kl_k3": "k3"}),
    CurvePlot("response_length", "Response length", "mean tokens", {"response_length/mean": "length"}, smooth=True),
)


def plot_run(run_dir: str | Path) -> list[Path]:
    """Draws the plots of a run into its ``plots`` folder, ``overview.png`` with all of them, and ``heat_maps.png``.

    A plot whose metrics are missing is left out.

    Args:
        run_dir: a run directory; the run may still be going on.

    Returns:
        The files written, the overview first.

    Raises:
        DataError: not a run directory, or nothing to plot in it yet.
    """
    run = RunDirectory(run_dir)
    if not run.metrics_file.is_file():
        raise DataError(
            f"'{run_dir}' is no run directory: it has no metrics.jsonl; name the trainer.run_dir of a run that started"
        )
    updates = run.updates()
    draws = _available_plots(run.metrics(), updates)
    if not draws:
        raise DataError(f"{run.metrics_file} has no metric to plot yet; wait for the first step")
    run.plots.mkdir(parents=True, exist_ok=True)
    overview, panels = panel_grid(len(draws), columns=min(len(draws), 2), inches=(6.2, 3.3), title=str(run.path))
    for axes, draw in zip(panels, draws.values(), strict=True):
        draw(axes)
    files = [save_png(overview, run.plots / "overview.png")]
    for name, draw in draws.items():
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        draw(figure.subplots())
        files.append(save_png(figure, run.plots / f"{name}.png"))
    heat_maps = draw_heat_maps(updates, title=str(run.path))
    if heat_maps is not None:
        files.append(save_png(heat_maps, run.plots / "heat_maps.png"))
    return files


def _available_plots(metrics: Lines, updates: Lines) -> dict[str, Callable[[Axes], None]]:
    draws: dict[str, Callable[[Axes], None]] = {}
    for plot in (REWARD_PLOT, *_validation_plots(metrics), *ACTOR_PLOTS):
        if any(_points(lines, metric)[0] for metric in plot.curves for lines in (metrics, updates)):
            draws[plot.name] = lambda axes, plot=plot: draw_curves(axes, plot, metrics, updates)
    if stage_totals(metrics):
        draws["time"] = lambda axes: _draw_time(axes, metrics)
    return draws


def _validation_plots(metrics: Lines) -> Iterator[CurvePlot]:
    """Accuracy, or the reward where it is no verdict: of all problems, and a line for each set."""
    validated = results_by_set(name for line in metrics for name in line)
    for figure, percent in (("accuracy", True), ("reward", False)):
        curves = {metric: name or "all problems" for name, metric in validated.items() if metric.endswith(figure)}
        if curves:
            yield CurvePlot(f"val_{figure}", f"Validation {figure}", figure, curves, percent=percent)


def draw_curves(axes: Axes, plot: CurvePlot, metrics: Lines, updates: Lines) -> None:
    """Draws a plot: each metric as ``metrics.jsonl`` has it, or else the mean over the updates of a step.

    Around the first metric a band shows the range of a step's updates, where there are several.
    """
    for index, (metric, label) in enumerate(plot.curves.items()):
        look = line_look(index)
        within = _by_step(updates, metric)
        steps, values = _points(metrics, metric)
        if not steps:
            steps, values = list(within), [sum(numbers) / len(numbers) for numbers in within.values()]
        if index == 0 and any(len(numbers) > 1 for numbers in within.values()):
            low, high = [min(numbers) for numbers in within.values()], [max(numbers) for numbers in within.values()]
            axes.fill_between(list(within), low, high, color=look["color"], alpha=0.15, linewidth=0, label=_RANGE_LABEL)
        if plot.smooth and len(values) >= 40:
            axes.plot(steps, values, alpha=0.3, linewidth=0.9, **look)
            values = _running_mean(values, radius=len(values) // 40)
        marker = "o" if len(steps) <= 30 else None
        axes.plot(steps, values, linewidth=1.8, marker=marker, markersize=3.5, label=label, **look)
    _finish_axes(axes, plot.title, plot.unit)
    if plot.percent:
        show_percent(axes)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw_time(axes: Axes, metrics: Lines) -> None:
    """Stacked seconds of the longest stages; the shorter ones and what no stage claims are "other"."""
    stages = list(stage_totals(metrics))[: len(COLORS) - 1]
    rows = [line for line in metrics if not stage_seconds(line).keys().isdisjoint(stages)]
    bars = [[stage_seconds(line).get(stage, 0.0) for line in rows] for stage in stages]
    named = [sum(values) for values in zip(*bars, strict=True)]
    bars.append([max(0.0, _step_seconds(line) - part) for line, part in zip(rows, named, strict=True)])
    edges = [line["step"] - 0.5 for line in rows] + [rows[-1]["step"] + 0.5]  # a column of width 1 a step
    columns = [[*values, values[-1]] for values in bars]
    colors = [*COLORS[: len(stages)], COLORS[-1]]
    axes.stackplot(edges, *columns, labels=[*stages, "other"], colors=colors, linewidth=0, step="post")
    _finish_axes(axes, "Time by stage", "seconds a step")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=8, labelcolor=INK)


def _finish_axes(axes: Axes, title: str, unit: str) -> None:
    style_axes(axes, title=title, x_label="rollout step", y_label=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(lines: Lines, metric: str) -> Points:
    known = [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]
    return [float(step) for step, _ in known], [float(value) for _, value in known]


def _by_step(updates: Lines, metric: str) -> dict[float, list[float]]:
    """The values of a metric in all updates of each step."""
    values: dict[float, list[float]] = {}
    for step, value in zip(*_points(updates, metric), strict=True):
        values.setdefault(step, []).append(value)
    return values


def _running_mean(values: Sequence[float], radius: int) -> list[float]:
    windows = [values[max(0, index - radius) : index + radius + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _step_seconds(line: Mapping[str, Any]) -> float:
    return max(sum(stage_seconds(line).values()), line.get("time/step") or 0.0)
