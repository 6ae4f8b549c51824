"""Plots of a run as PNG: reward, accuracy, clip fraction, entropy, KL, gradient norm, response length, time by stage, heat
maps.

Step 0 is the state before training. It has its place at the beginning of each curve, under the name "start". The seconds
that the start took are said in words, since they would dwarf those of the steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfpo_hybrid.errors import DataError
from trainer.config.losses import loss_words
from trainer.config.schema import flat
from trainer.figures.drawing import (
    COLORS,
    INK,
    ROUNDING,
    line_look,
    panel_grid,
    save_png,
    set_title,
    settle_range,
    show_percent,
    show_steps,
    style_axes,
)
from trainer.figures.heat_maps import draw_heat_maps
from trainer.run.directory import RunDirectory
from trainer.run.metrics import BESIDE_THE_STEP, stage_seconds, stage_totals
from trainer.run.validation_names import results_by_set

_RANGE_LABEL = "range of the updates in a step"
Lines = Sequence[Mapping[str, Any]]
Points = tuple[list[float], list[float]]
BEGIN = "start"
"""The stage that begins a run: models, weights and the first reshard."""
OTHER = "other"
"""Time of a step that no drawn stage claims."""


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
        noise: differences up to this are rounding, in the unit of the values.
        wide: may grow by orders of magnitude; the axis is logarithmic where it does.
    """

    name: str
    title: str
    unit: str
    curves: Mapping[str, str]
    smooth: bool = False
    percent: bool = False
    noise: float = 0.0
    wide: bool = False


CLIP_FRACTIONS = {
    "actor/clip_fraction": "all tokens",
    "actor/clip_fraction_positive": "advantage > 0",
    "actor/clip_fraction_negative": "advantage < 0",
}
REWARD_PLOT = CurvePlot("reward", "Training reward", "mean reward", {"reward/mean": "reward"}, smooth=True)
ACTOR_PLOTS = (
    CurvePlot(
        "clip_fraction",
        "Clip fraction (as PPO would count it)",
        "share of tokens",
        CLIP_FRACTIONS,
        percent=True,
        noise=ROUNDING,
    ),
    CurvePlot("entropy", "Policy entropy", "nats a token", {"actor/entropy": "entropy"}, noise=ROUNDING),
    CurvePlot(
        "kl",
        "KL to the policy that sampled",
        "nats a token",
        {"actor/kl_k1": "k1", "actor/kl_k3": "k3"},
        noise=ROUNDING,
    ),
    CurvePlot("grad_norm", "Gradient norm before clipping", "norm", {"actor/grad_norm": "norm"}, wide=True),
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
    title = run_title(run)
    run.plots.mkdir(parents=True, exist_ok=True)
    overview, panels = panel_grid(len(draws), columns=min(len(draws), 2), inches=(6.2, 3.3), title=title)
    for axes, draw in zip(panels, draws.values(), strict=True):
        draw(axes)
    files = [save_png(overview, run.plots / "overview.png")]
    for name, draw in draws.items():
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        draw(figure.subplots())
        set_title(figure, title)
        files.append(save_png(figure, run.plots / f"{name}.png"))
    heat_maps = draw_heat_maps(updates, title=title)
    if heat_maps is not None:
        files.append(save_png(heat_maps, run.plots / "heat_maps.png"))
    return files


def run_title(run: RunDirectory) -> str:
    """Which run it is: its folder, loss with its knobs, off-policy pressure, rate and model, as far as its config says.

    Example: ``quickstart: cfpo epsilon=0.1, iterations 2 x batch ratio 1, largest lag 1, lr 0.0002, model``.
    """
    settings = flat(run.config())
    words = [loss_words(run.config().get("policy_loss") or {})]
    passes, ratio = settings.get("algorithm.iterations"), settings.get("algorithm.batch_ratio")
    if isinstance(passes, int) and isinstance(ratio, int):
        lag = (settings.get("algorithm.weight_lag", 0) + 1) * passes * ratio - 1
        words.append(f"iterations {passes} x batch ratio {ratio}, largest lag {lag}")
    if "actor.lr" in settings:
        words.append(f"lr {settings['actor.lr']:g}")
    if settings.get("model.path"):
        words.append(Path(settings["model.path"]).name)
    known = ", ".join(filter(None, words))
    name = run.path.resolve().name
    return f"{name}: {known}" if known else name


def _available_plots(metrics: Lines, updates: Lines) -> dict[str, Callable[[Axes], None]]:
    draws: dict[str, Callable[[Axes], None]] = {}
    for plot in (REWARD_PLOT, *_validation_plots(metrics), *ACTOR_PLOTS):
        if any(metric in line for metric in plot.curves for lines in (metrics, updates) for line in lines):
            draws[plot.name] = lambda axes, plot=plot: draw_curves(axes, plot, metrics, updates)
    if _timed_steps(metrics):
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

    Around the first metric a band shows the range of a step's updates, where there are several. A line has gaps where the
    value was not finite.
    """
    for index, (metric, label) in enumerate(plot.curves.items()):
        within = _by_step(updates, metric)
        steps, values = _points(metrics, metric)
        if not steps:
            steps, values = list(within), [_mean(numbers) for numbers in within.values()]
        look = line_look(index, len(steps))
        if index == 0 and any(len(numbers) > 1 for numbers in within.values()):
            low = [min(numbers, default=math.nan) for numbers in within.values()]
            high = [max(numbers, default=math.nan) for numbers in within.values()]
            axes.fill_between(list(within), low, high, color=look["color"], alpha=0.15, linewidth=0, label=_RANGE_LABEL)
        if plot.smooth and len(values) >= 40:
            axes.plot(steps, values, color=look["color"], alpha=0.3, linewidth=0.9)
            values = _running_mean(values, radius=len(values) // 40)
        if steps:
            axes.plot(steps, values, linewidth=1.8, label=label, **look)
            _mark_start_and_single_points(axes, steps, values, look["color"])
    style_axes(axes, title=plot.title, x_label="rollout step", y_label=plot.unit)
    show_steps(axes)
    if plot.percent:
        show_percent(axes)
    settle_range(axes, noise=plot.noise, wide=plot.wide)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=3.5)


def _mark_start_and_single_points(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str) -> None:
    """A ring around the start, and a dot where gaps on both sides leave no line."""
    around = [math.nan, *values, math.nan]
    alone = [
        (step, value)
        for step, before, value, after in zip(steps, around, values, around[2:], strict=False)
        if math.isnan(before) and math.isnan(after) and not math.isnan(value)
    ]
    if alone:
        axes.scatter([step for step, _ in alone], [value for _, value in alone], s=14, color=color, zorder=3)
    if steps[0] == 0 and not math.isnan(values[0]):
        axes.scatter([0.0], values[:1], s=36, facecolors="white", edgecolors=color, linewidths=1.6, zorder=3)


def _draw_time(axes: Axes, metrics: Lines) -> None:
    """Stacked seconds of the longest stages; the shorter ones and what no stage claims are "other".

    Step 0 and the stage that begins a run, after a resume too, are no time of a step.
    """
    rows = _timed_steps(metrics)
    stages = list(stage_totals(rows))
    stages = [stage for stage in stages if stage != BEGIN][: len(COLORS) - 1]
    bars = [[stage_seconds(line).get(stage, 0.0) for line in rows] for stage in stages]
    named = [sum(values) for values in zip(*bars, strict=True)] or [0.0] * len(rows)
    bars.append([max(0.0, _step_seconds(line) - part) for line, part in zip(rows, named, strict=True)])
    edges = [line["step"] - 0.5 for line in rows] + [rows[-1]["step"] + 0.5]  # a column of width 1 a step
    columns = [[*values, values[-1]] for values in bars]
    colors = [*COLORS[: len(stages)], COLORS[-1]]
    axes.stackplot(edges, *columns, labels=[*stages, OTHER], colors=colors, linewidth=0, step="post")
    started = stage_totals([line for line in metrics if line["step"] == 0]) | {
        BEGIN: stage_totals(metrics).get(BEGIN, 0.0)
    }
    said = [f"{stage} {started[stage]:.3g} s" for stage in BESIDE_THE_STEP if started.get(stage)]
    title = "Time by stage" + (f"; before the steps: {', '.join(said)}" if said else "")
    style_axes(axes, title=title, x_label="rollout step", y_label="seconds a step")
    show_steps(axes)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=8, labelcolor=INK)


def _timed_steps(metrics: Lines) -> list[Mapping[str, Any]]:
    """The lines of steps after the start that say how long a stage took."""
    return [line for line in metrics if line["step"] > 0 and stage_seconds(line)]


def _points(lines: Lines, metric: str) -> Points:
    """Steps and values of the lines that have the metric; NaN where it was not finite."""
    known = [(line["step"], line[metric]) for line in lines if metric in line]
    return [float(step) for step, _ in known], [_finite_or_nan(value) for _, value in known]


def _finite_or_nan(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _by_step(updates: Lines, metric: str) -> dict[float, list[float]]:
    """The finite values of a metric in the updates of each step; a step may have none."""
    values: dict[float, list[float]] = {}
    for step, value in zip(*_points(updates, metric), strict=True):
        values.setdefault(step, []).extend([] if math.isnan(value) else [value])
    return values


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def _running_mean(values: Sequence[float], radius: int) -> list[float]:
    """The mean of the finite values around each; gaps stay gaps."""
    means = []
    for index, value in enumerate(values):
        window = [near for near in values[max(0, index - radius) : index + radius + 1] if not math.isnan(near)]
        means.append(math.nan if math.isnan(value) else _mean(window))
    return means


def _step_seconds(line: Mapping[str, Any]) -> float:
    """Seconds of a step without the stage that begins a run."""
    stages = stage_seconds(line)
    begin = stages.pop(BEGIN, 0.0)
    return max(sum(stages.values()), (line.get("time/step") or 0.0) - begin)
