"""KL estimators: values and gradients by hand, precision near 0, the clamp."""

import math

import pytest
import torch

from cfpo_hybrid import ConfigError
from cfpo_hybrid.algorithms.kl import KlController, reference_kl, response_kl


def estimate(difference, estimator, dtype=torch.float64):
    log_probs = torch.tensor(difference, dtype=dtype) - 3.0
    return reference_kl(log_probs, torch.full_like(log_probs, -3.0), estimator)


def test_values_by_hand():
    # d = ln 2 = 0.6931: k1 = d, k2 = d^2/2 = 0.2402, k3 = 1/2 - 1 + d = 0.1931
    d = math.log(2)
    assert float(estimate([d], "k1")) == pytest.approx(0.693147, abs=1e-6)
    assert float(estimate([d], "k2")) == pytest.approx(0.240227, abs=1e-6)
    assert float(estimate([d], "k3")) == pytest.approx(0.193147, abs=1e-6)
    assert float(estimate([-d], "abs")) == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "gradient"), [("k1", 1.0), ("k2", 0.5), ("k3", 1 - math.exp(-0.5)), ("abs", 1.0)]
)
def test_gradients_by_hand(estimator, gradient):
    # d = 0.5: k1' = 1, k2' = d, k3' = 1 - exp(-d), which is not the KL's gradient d
    log_probs = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    reference_kl(log_probs, torch.tensor([-1.5], dtype=torch.float64), estimator).sum().backward()
    assert float(log_probs.grad) == pytest.approx(gradient)


@pytest.mark.parametrize("estimator", ["k1", "k3", "abs"])
def test_straight_through_reports_one_and_descends_another(estimator):
    # d = 0.5 and -2: the value is the estimator's own, the gradient that of k2, d.
    log_probs = torch.tensor([-1.0, -3.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -1.5], dtype=torch.float64)
    value = reference_kl(log_probs, reference, f"{estimator}+")
    torch.testing.assert_close(value.detach(), reference_kl(log_probs, reference, estimator).detach())
    value.sum().backward()
    assert log_probs.grad.tolist() == pytest.approx([0.5, -2.0])


def test_a_response_has_the_kl_of_its_counted_tokens():
    # d = 1, 2 and a masked NaN: k2 sums to 0.5 + 2; nothing counted: 0
    log_probs, reference = torch.tensor([[-1.0, -1.0, math.nan], [-1.0, -1.0, -1.0]]), torch.tensor([-2.0, -3.0, 0.0])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert response_kl(log_probs, reference.expand(2, 3), mask, "k2").tolist() == [2.5, 0.0]


def test_the_controller_steers_towards_its_target():
    controller = KlController(coef=0.1, target=0.05, horizon=1000)
    # Twice the target: the error is cut to 0.2, times 100 / 1000; half of it likewise downwards.
    assert controller.after(0.1, 100).coef == pytest.approx(0.102)
    assert controller.after(0.025, 100).coef == pytest.approx(0.098)
    # 10 % above: 1 + 0.1 * 100 / 1000
    assert controller.after(0.055, 100).coef == pytest.approx(0.101)
    assert controller.after(0.05, 100).coef == pytest.approx(0.1)
    assert controller.after(0.0, 1_000_000).coef == pytest.approx(0.05)
    fixed = KlController(coef=0.1)
    assert fixed.after(9.0, 100) is fixed


def test_the_expectation_is_the_divergence():
    # Exact over a three-token vocabulary: sum p f(log p - log q) = KL(p || q) for k1 and k3.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    divergence = float((p * (p / q).log()).sum())
    for estimator in ("k1", "k3"):
        assert float((p * reference_kl(p.log(), q.log(), estimator)).sum()) == pytest.approx(divergence)


def test_k1_has_a_sign_and_the_others_do_not():
    differences = [-2.0, -0.1, 0.0, 0.1, 2.0]
    assert estimate(differences, "k1").tolist() == pytest.approx(differences)
    assert (estimate(differences, "k2") >= 0).all()
    assert (estimate(differences, "k3") >= 0).all()


def test_k3_keeps_its_digits_near_zero_in_fp32():
    # d^2/2 at 2^-12 is 2.98e-8, less than the fp32 spacing at 1: exp(-d) - 1 + d would be rounding noise.
    d = 2.0**-12
    log_probs = torch.tensor([d], dtype=torch.float32)
    value = float(reference_kl(log_probs, torch.zeros(1), "k3"))
    assert value == pytest.approx(d * d / 2, rel=1e-3)


def test_extremes_are_clamped_at_twenty_and_not_before():
    # At d = -15 the gradient of k3, 1 - e^15, is still there (verl cuts the value at 10, and the gradient with it).
    log_probs = torch.tensor([-18.0, -1000.0], requires_grad=True)
    value = reference_kl(log_probs, torch.tensor([-3.0, 0.0]), "k3")
    value.sum().backward()
    assert value.isfinite().all()
    assert float(log_probs.grad[0]) == pytest.approx(1 - math.exp(15), rel=1e-5)
    assert float(log_probs.grad[1]) == 0


def test_low_precision_is_raised_to_fp32():
    assert reference_kl(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2), "k3").dtype == torch.float32


def test_unknown_estimator():
    with pytest.raises(ConfigError, match="k1, k2, k3"):
        reference_kl(torch.zeros(1), torch.zeros(1), "full")
