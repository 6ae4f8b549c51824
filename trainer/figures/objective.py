"""Objective and gradient of policy losses as functions of the ratio: Figure 1 of the CFPO paper, for any losses.

Every curve comes from the registered loss itself and its derivative by autograd: one token is one response, whose ratio
takes each value in turn. With J = -loss and r = pi_theta / pi_old:

    gradient                dJ / dr
    gradient to the model   dJ / d log pi_theta = r dJ / dr
    objective               J(r) - J(1), the integral of dJ / dr from 1 to r

The integral is what a descent on the loss climbs. A loss that stops gradients on purpose (CISPO), or sets whole tokens to
0 (DPPO), has another value, which no gradient belongs to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens, PolicyLoss, PolicyLossInputs
from trainer.config.losses import loss_label
from trainer.figures.drawing import legend_below, line_look, save_png, style_axes

OLD_PROBABILITY = 0.3
"""pi_old of the token, for losses that look at probabilities and not at the ratio alone."""

RATIOS = torch.arange(50, 451, dtype=torch.float64) / 250
"""``[ratio]`` fp64: 0.2 to 1.8 in steps of 0.004; one of them is 1."""

CAPTION = (
    "Objective and gradient of each loss for one token as functions of the ratio r = pi_theta / pi_old, for advantage "
    "+1 (left) and -1 (right). Above: the objective less its value at r = 1, as the integral of its gradient. Middle: its "
    "derivative by r. Below: its derivative by log pi_theta, which is what reaches the model; axes end at -4 and 4. All "
    "by automatic differentiation of the registered losses. Losses that look at probabilities see pi_old = "
    f"{OLD_PROBABILITY}; losses on a whole response see one of this token alone; losses that pick tokens out of a "
    "mini-batch pick none. As Figure 1 of the CFPO paper (arXiv 2601.22801)."
)
_ROWS = ("objective J(r) - J(1)", "dJ / dr", "dJ / d log pi")
_VISIBLE = ((-2.0, 1.0), (-4.0, 4.0), (-4.0, 4.0))
"""Bounds of each row's axis: what lies beyond (a penalty far from r = 1) would flatten everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveCurves:
    """Of one loss and one advantage, each ``[ratio]`` fp64.

    Example: of ``cfpo`` with A = 1 and epsilon = 0.2, by_ratio is 1 - (r - 1) / 0.2.
    """

    objective: Tensor
    by_ratio: Tensor
    by_log_prob: Tensor


def objective_curves(loss: PolicyLoss, advantage: float) -> ObjectiveCurves:
    """The curves of a loss over ``RATIOS``.

    Args:
        loss: any registered one.
        advantage: of the token.
    """
    old = torch.full((len(RATIOS), 1), math.log(OLD_PROBABILITY), dtype=torch.float64)
    log_probs = (old + RATIOS.log().unsqueeze(1)).requires_grad_()
    advantages = torch.full((len(RATIOS),), advantage, dtype=torch.float64)
    mask = torch.ones_like(old, dtype=torch.bool)
    inputs = PolicyLossInputs(
        log_probs=log_probs,
        old_log_probs=old,
        advantages=advantages,
        mask=mask,
        rollout_log_probs=old,
        ref_log_probs=old,
        entropy=torch.zeros_like(old).requires_grad_(),
        statistics=loss.statistics(MiniBatchTokens.of(old, advantages, mask)),
    )
    (gradient,) = torch.autograd.grad(loss(inputs).sum(), log_probs)
    by_log_prob = -gradient.squeeze(1)
    by_ratio = by_log_prob / RATIOS
    steps = (by_ratio[1:] + by_ratio[:-1]) / 2 * RATIOS.diff()
    objective = torch.nn.functional.pad(steps.cumsum(dim=0), (1, 0))
    at_one = int((RATIOS - 1).abs().argmin())
    return ObjectiveCurves(objective=objective - objective[at_one], by_ratio=by_ratio, by_log_prob=by_log_prob)


def draw_objective(losses: Sequence[PolicyLoss], file: Path) -> Path:
    """Writes the picture of these losses as PNG."""
    legend_rows = math.ceil(len(losses) / 4)
    figure = Figure(figsize=(9.0, 8.4 + 0.25 * legend_rows), layout="constrained")
    grid = figure.subplots(3, 2, sharex="all", sharey="row")
    for column, advantage in enumerate((1.0, -1.0)):
        for index, loss in enumerate(losses):
            curves = objective_curves(loss, advantage)
            values = (curves.objective, curves.by_ratio, curves.by_log_prob)
            for axes, curve in zip(grid[:, column], values, strict=True):
                axes.plot(RATIOS, curve, linewidth=1.7, label=loss_label(loss), **line_look(index, len(RATIOS)))
        for row, axes in enumerate(grid[:, column]):
            _finish(axes, row, title=f"advantage {advantage:+g}" if row == 0 else "")
    legend_below(figure, *grid[0, 0].get_legend_handles_labels(), columns=4)
    return save_png(figure, file)


def _finish(axes: Axes, row: int, title: str) -> None:
    is_last = row == len(_ROWS) - 1
    style_axes(axes, title=title, x_label="ratio r" if is_last else "", y_label=_ROWS[row])
    axes.axvline(1.0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.axhline(0.0, color="#BBBBBB", linewidth=0.8, zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _VISIBLE[row][0]), min(high, _VISIBLE[row][1]))
