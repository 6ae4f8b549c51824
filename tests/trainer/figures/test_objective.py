"""Curves of the objective picture against formulas worked out by hand; and how losses are chosen by name."""

from pathlib import Path

import pytest
import torch
from published_losses import published_losses

from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.errors import ConfigError
from trainer import cli
from trainer.config.losses import choose_losses, loss_label
from trainer.figures.objective import RATIOS, objective_curves


def test_cfpo_is_a_parabola_with_its_top_at_the_edge_of_the_trust_region():
    for sign in (1.0, -1.0):
        curves = objective_curves(build_policy_loss("cfpo", epsilon=0.1), sign)
        r = RATIOS
        torch.testing.assert_close(curves.objective, sign * (r - 1) - (r - 1).square() / 0.2, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(curves.by_ratio, sign - (r - 1) / 0.1)
        torch.testing.assert_close(curves.by_log_prob, r * (sign - (r - 1) / 0.1))


def test_clip_is_flat_where_the_advantage_leads_out():
    up, down = (objective_curves(build_policy_loss("clip"), sign).by_ratio for sign in (1.0, -1.0))
    assert set(up[RATIOS > 1.2].tolist()) == {0.0}
    torch.testing.assert_close(up[RATIOS < 1.2], torch.ones_like(up[RATIOS < 1.2]))
    assert set(down[RATIOS < 0.8].tolist()) == {0.0}


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # CISPO and DPPO have r A for a gradient, up to a bound; CISPO's value says nothing of it.
        ("cispo", lambda r: r - 1),
        ("dppo_tv", lambda r: (r - 1).clamp(max=2 / 3)),  # pi may grow from 0.3 to 0.5
        ("policy_gradient", lambda r: r.log()),
        ("clip", lambda r: (r - 1).clamp(max=0.2)),
        ("kl_penalty", lambda r: r - 1 - 5 * (r - 1 - r.log())),
        ("drpo", lambda r: r - 1 - 2.5 * 0.3 * (r - 1).square()),
        ("sapo", lambda r: 4 * torch.sigmoid(r - 1) - 2),
        ("kl_cov", lambda r: r - 1),
    ],
)
def test_objectives_by_hand(name: str, by_hand):
    curves = objective_curves(build_policy_loss(name), 1.0)
    # The trapezoid is out by up to half a step, 0.002, beyond a jump of the gradient.
    torch.testing.assert_close(curves.objective, by_hand(RATIOS), rtol=0, atol=0.0021)


@pytest.mark.parametrize(
    "loss", [loss for loss in choose_losses("all") if loss.name in published_losses()], ids=loss_label
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_every_loss_starts_with_the_policy_gradient(loss, advantage: float):
    curves = objective_curves(loss, advantage)
    at_one = int((RATIOS - 1).abs().argmin())
    assert curves.objective[at_one] == 0.0
    assert curves.by_ratio[at_one] == pytest.approx(advantage)
    torch.testing.assert_close(curves.by_log_prob, RATIOS * curves.by_ratio)


def test_losses_are_chosen_by_name_and_knobs():
    chosen = choose_losses("clip,cfpo:epsilon=0.1, cfpo,clip:clip_low=0.2")
    assert [loss_label(loss) for loss in chosen] == ["clip", "cfpo epsilon=0.1", "cfpo"]
    assert {loss_label(loss) for loss in choose_losses("all")} >= {"clip", "cfpo", "gspo", "kl_cov"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cfop", "did you mean 'cfpo'"),
        ("cfpo:eps=1", "no such knob"),
        ("cfpo:epsilon", "write key=value"),
        (",", "names no loss"),
    ],
)
def test_wrong_losses_are_mistakes_of_the_user(words: str, message: str):
    with pytest.raises(ConfigError, match=message):
        choose_losses(words)


def test_the_command_line_draws_objectives_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new"
    assert cli.main(["plot", "--losses", "clip,cfpo", str(out)]) == 0
    assert (out / "objective.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "objective.png") in capsys.readouterr().out
