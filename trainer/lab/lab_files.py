"""What the lab writes: a table for people, CSV files and pictures."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainer.config.losses import loss_label
from trainer.config.problem import count
from trainer.figures.drawing import COLORS, INK, legend_below, panel_grid, save_png, style_axes
from trainer.lab.gradients import RatioBins, WeightCurve
from trainer.lab.lab import LabResult

_SHARES = ("zero_gradient_share", "corrective_share", "clip_fraction")
_WIDE_RATIOS = 20.0
_UNMOVED = 1e-3

Row = dict[str, str | float]
Curves = dict[tuple[str, str], WeightCurve]
"""By the loss and the sign of the advantage, ``"positive"`` or ``"negative"``."""


def table(result: LabResult) -> list[Row]:
    """A row a loss, by column; NaN where a cosine is of a gradient of 0."""
    rows: list[Row] = []
    for index, reading in enumerate(result.readings):
        row: Row = {
            "name": loss_label(reading.loss),
            "loss": reading.metrics.get("actor/loss", math.nan),
            "gradient_norm": float(result.tokens.norms[index]),
            "cosine": float(result.tokens.cosines[index, 0]),
            **{name: reading.metrics.get(f"actor/{name}", math.nan) for name in _SHARES},
        }
        if result.parameters is not None:
            row["parameter_gradient_norm"] = float(result.parameters.norms[index])
            row["parameter_cosine"] = float(result.parameters.cosines[index, 0])
        rows.append(row)
    return rows


def text(result: LabResult) -> str:
    """The table and what it stands on, for people."""
    rows = table(result)
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*_facts(result), "", *shown, *(f"left out: {line}" for line in result.left_out)])


def write_files(result: LabResult, folder: Path) -> list[Path]:
    """Writes everything into a folder, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, bins, curves = table(result), RatioBins(result.inputs), Curves()
    for reading in result.readings:
        for sign in ("positive", "negative"):
            curves[loss_label(reading.loss), sign] = bins.curve(reading.weights, positive=sign == "positive")
    labels = [loss_label(reading.loss) for reading in result.readings]
    files = [
        _write_csv(folder / "losses.csv", [list(rows[0]), *(list(row.values()) for row in rows)]),
        _write_csv(folder / "weights.csv", _weight_rows(curves, bins)),
        _draw_weights(labels, curves, bins, folder / "weights.png"),
        *_cosine_files(labels, result.tokens.cosines, folder / "cosines", "gradients with respect to log-probs"),
    ]
    if result.parameters is not None:
        where = folder / "parameter_cosines"
        files += _cosine_files(labels, result.parameters.cosines, where, "gradients with respect to the parameters")
    return files


def _facts(result: LabResult) -> list[str]:
    inputs, rollout = result.inputs, result.rollout
    log_ratio = inputs.unclamped_log_ratio.detach()[inputs.mask]
    smallest, largest = (math.exp(min(float(end), 700.0)) for end in log_ratio.aminmax())
    lines = [
        f"{rollout.path}: {count(len(rollout.batch), 'response')}, {count(int(inputs.num_counted), 'counted token')}",
        f"policies: {result.policies}",
        f"ratios: from {smallest:.3g} to {largest:.3g}, mean of |log r| {float(log_ratio.abs().mean()):.2g} nats",
        "cosine: to policy_gradient; corrective: the gradient moves the token against its advantage",
    ]
    if rollout.rows_left_out:
        lines.append(f"left out: {count(rollout.rows_left_out, 'response')} with numbers that are not finite")
    if float(log_ratio.abs().max()) < _UNMOVED:
        lines.append("both policies are nearly the same, so most losses agree; --drift 0.1 or --model moves them apart")
    return lines


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "-" if math.isnan(value) else f"{value:.4g}"


def _write_csv(file: Path, lines: Sequence[Sequence[str | float]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(lines)
    return file


def _weight_rows(curves: Curves, bins: RatioBins) -> list[list[str | float]]:
    lines: list[list[str | float]] = [
        ["name", "advantage", "ratio_low", "ratio_high", "tokens", "mean_weight", "zero_gradient_share"]
    ]
    edges = bins.edges.tolist()
    for (name, sign), curve in curves.items():
        columns = (edges[:-1], edges[1:], curve.tokens.tolist(), curve.weight.tolist(), curve.zero_share.tolist())
        lines += [[name, sign, *values] for values in zip(*columns, strict=True) if values[2]]
    return lines


def _draw_weights(labels: Sequence[str], curves: Curves, bins: RatioBins, file: Path) -> Path:
    """A panel a loss; the first panel says how many tokens the bins hold."""
    title = "Mean weight of a token in the gradient against its ratio"
    figure, panels = panel_grid(len(labels) + 1, columns=4, inches=(3.0, 2.3), margin=0.6, title=title)
    panel_of = dict(zip(labels, panels[1:], strict=True))
    middles = (bins.edges[:-1] * bins.edges[1:]).sqrt()
    for (name, sign), curve in curves.items():
        color = COLORS[0] if sign == "positive" else COLORS[1]
        look = {"color": color, "marker": "o", "markersize": 2.5, "linewidth": 1.2, "label": f"advantage {sign}"}
        filled = curve.tokens > 0
        panel_of[name].plot(middles[filled], curve.weight[filled], **look)
        if name == labels[0]:
            panels[0].plot(middles[filled], curve.tokens[filled], **look)
    _finish_panel(panels[0], "tokens", bins)
    panels[0].set_yscale("log")
    diagonal = {"color": "#BBBBBB", "linewidth": 0.8, "linestyle": "--", "zorder": 0, "label": "weight = ratio"}
    for name, axes in panel_of.items():
        axes.plot(bins.edges, bins.edges, **diagonal)
        _finish_panel(axes, name, bins)
    legend_below(figure, *panels[1].get_legend_handles_labels(), columns=3)
    return save_png(figure, file)


def _finish_panel(axes: Axes, title: str, bins: RatioBins) -> None:
    style_axes(axes, x_label="ratio")
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    if float(bins.edges[-1] / bins.edges[0]) > _WIDE_RATIOS:
        axes.set_xscale("log")


def _cosine_files(labels: Sequence[str], cosines: Tensor, stem: Path, what: str) -> list[Path]:
    """The matrix as CSV and as a picture."""
    lines = [["", *labels], *([label, *line] for label, line in zip(labels, cosines.tolist(), strict=True))]
    size = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines, vmin=-1.0, vmax=1.0, cmap="RdBu")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8, color=INK)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, color=INK)
    for row, line in enumerate(cosines.tolist()):
        for column, cosine in enumerate(line):
            color = "white" if abs(cosine) > 0.7 else INK
            axes.text(column, row, f"{cosine:.2f}", ha="center", va="center", fontsize=6, color=color)
    axes.set_title(f"Cosines between {what}", loc="left", fontsize=10, color=INK)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return [_write_csv(stem.with_suffix(".csv"), lines), save_png(figure, stem.with_suffix(".png"))]
