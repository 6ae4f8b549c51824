"""What the lab writes: a table for people, CSV files and two pictures."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainer.chosen_losses import loss_label
from trainer.figures.drawing import COLORS, INK, save_png, style_axes
from trainer.lab.lab import LabResult
from trainer.lab.weight_curves import RatioBins, WeightCurve

COLUMNS = {
    "loss": "actor/loss",
    "zero_gradient_share": "actor/zero_gradient_share",
    "corrective_share": "actor/corrective_share",
    "clip_fraction": "actor/clip_fraction",
}
"""Columns of the table that training logs under another name."""
SIGNS = {"positive": True, "negative": False}
_PANELS_A_ROW = 4
_WIDE_RATIOS = 20.0
_UNMOVED = 1e-3


def header(result: LabResult) -> list[str]:
    """Of the table."""
    names = ["name", "loss", "gradient_norm", "cosine", *list(COLUMNS)[1:]]
    return names if result.parameters is None else [*names, "parameter_gradient_norm", "parameter_cosine"]


def rows(result: LabResult) -> Iterator[list[str | float]]:
    """Of the table, a row a loss; NaN where a cosine is of a gradient of 0."""
    for index, reading in enumerate(result.readings):
        loss, *shares = (reading.metrics.get(name, math.nan) for name in COLUMNS.values())
        row = [
            loss_label(reading.loss),
            loss,
            *_norm_and_cosine(result.tokens.norms, result.tokens.cosines, index),
            *shares,
        ]
        if result.parameters is not None:
            row += _norm_and_cosine(result.parameters.norms, result.parameters.cosines, index)
        yield row


def text(result: LabResult) -> str:
    """The table and what it stands on, for people."""
    lines = [header(result), *([_shown(value) for value in row] for row in rows(result))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*_facts(result), "", *table, *(f"left out: {line}" for line in result.left_out)])


def write_files(result: LabResult, folder: Path) -> list[Path]:
    """Writes everything into a folder, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    bins = RatioBins(result.inputs)
    curves = [
        (loss_label(reading.loss), sign, bins.curve(reading.weights, positive=positive))
        for reading in result.readings
        for sign, positive in SIGNS.items()
    ]
    labels = [loss_label(reading.loss) for reading in result.readings]
    files = [
        _write_csv(folder / "losses.csv", [header(result), *rows(result)]),
        _write_csv(folder / "weights.csv", _weight_rows(curves, bins)),
        _draw_weights(curves, bins, folder / "weights.png"),
        *_cosine_files(labels, result.tokens.cosines, folder / "cosines", "gradients with respect to log-probs"),
    ]
    if result.parameters is not None:
        where = folder / "parameter_cosines"
        files += _cosine_files(labels, result.parameters.cosines, where, "gradients with respect to the parameters")
    return files


def _norm_and_cosine(norms: Tensor, cosines: Tensor, index: int) -> list[float]:
    return [float(norms[index]), float(cosines[index, 0])]


def _facts(result: LabResult) -> list[str]:
    inputs, rollout = result.inputs, result.rollout
    log_ratio = inputs.unclamped_log_ratio.detach()[inputs.mask]
    lines = [
        f"{rollout.path}: {len(rollout.batch)} responses, {int(inputs.num_counted)} tokens that count",
        f"policies: {result.pair.origin}",
        f"ratios: from {math.exp(min(float(log_ratio.min()), 700.0)):.3g} to "
        f"{math.exp(min(float(log_ratio.max()), 700.0)):.3g}, mean of |log r| {float(log_ratio.abs().mean()):.2g} nats",
        "cosine: to policy_gradient; corrective: the gradient moves the token against its advantage",
    ]
    if rollout.rows_left_out:
        lines.append(f"{rollout.rows_left_out} responses with numbers that are not finite were left out")
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


def _weight_rows(curves: Sequence[tuple[str, str, WeightCurve]], bins: RatioBins) -> list[list[str | float]]:
    lines: list[list[str | float]] = [
        ["name", "advantage", "ratio_low", "ratio_high", "tokens", "mean_weight", "zero_gradient_share"]
    ]
    edges = bins.edges.tolist()
    for name, sign, curve in curves:
        columns = (edges[:-1], edges[1:], curve.tokens.tolist(), curve.weight.tolist(), curve.zero_share.tolist())
        lines += [[name, sign, *values] for values in zip(*columns, strict=True) if values[2]]
    return lines


def _draw_weights(curves: Sequence[tuple[str, str, WeightCurve]], bins: RatioBins, file: Path) -> Path:
    """A panel a loss; the first panel says how many tokens the bins hold."""
    names = list(dict.fromkeys(name for name, _, _ in curves))
    grid_rows = math.ceil((len(names) + 1) / _PANELS_A_ROW)
    figure = Figure(figsize=(3.0 * _PANELS_A_ROW, 2.3 * grid_rows + 0.6), layout="constrained")
    panels = list(figure.subplots(grid_rows, _PANELS_A_ROW, squeeze=False).flatten())
    middles = (bins.edges[:-1] * bins.edges[1:]).sqrt()
    of_panel = dict(zip(names, panels[1:], strict=False))
    for name, sign, curve in curves:
        look = {"color": COLORS[0] if SIGNS[sign] else COLORS[1], "marker": "o", "markersize": 2.5, "linewidth": 1.2}
        filled = curve.tokens > 0
        of_panel[name].plot(middles[filled], curve.weight[filled], label=f"advantage {sign}", **look)
        if name == names[0]:
            panels[0].plot(middles[filled], curve.tokens[filled], label=f"advantage {sign}", **look)
    _finish_panel(panels[0], "tokens", bins)
    panels[0].set_yscale("log")
    for name, axes in of_panel.items():
        axes.plot(
            bins.edges, bins.edges, color="#BBBBBB", linewidth=0.8, linestyle="--", zorder=0, label="weight = ratio"
        )
        _finish_panel(axes, name, bins)
    for axes in panels[len(names) + 1 :]:
        axes.set_axis_off()
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    figure.suptitle("Mean weight of a token in the gradient against its ratio", fontsize=11, color=INK)
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
