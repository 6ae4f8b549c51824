"""KL estimators: values and gradients by hand, precision near 0, the clamp."""

import math

import pytest
import torch

from cfpo_hybrid import ConfigError
from cfpo_hybrid.algorithms.kl import kl_penalty


def estimate(difference, estimator, dtype=torch.float64):
    log_probs = torch.tensor(difference, dtype=dtype) - 3.0
    return kl_penalty(log_probs, torch.full_like(log_probs, -3.0), estimator)


def test_values_by_hand():
    # d = ln 2 = 0.6931: k1 = d, k2 = d^2/2 = 0.2402, k3 = 1/2 - 1 + d = 0.1931
    d = math.log(2)
    assert float(estimate([d], "k1")) == pytest.approx(0.693147, abs=1e-6)
    assert float(estimate([d], "k2")) == pytest.approx(0.240227, abs=1e-6)
    assert float(estimate([d], "k3")) == pytest.approx(0.193147, abs=1e-6)


@pytest.mark.parametrize(("estimator", "gradient"), [("k1", 1.0), ("k2", 0.5), ("k3", 1 - math.exp(-0.5))])
def test_gradients_by_hand(estimator, gradient):
    # d = 0.5: k1' = 1, k2' = d, k3' = 1 - exp(-d), which is not the KL's gradient d
    log_probs = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    kl_penalty(log_probs, torch.tensor([-1.5], dtype=torch.float64), estimator).sum().backward()
    assert float(log_probs.grad) == pytest.approx(gradient)


def test_the_expectation_is_the_divergence():
    # Exact over a three-token vocabulary: sum p f(log p - log q) = KL(p || q) for k1 and k3.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    divergence = float((p * (p / q).log()).sum())
    for estimator in ("k1", "k3"):
        assert float((p * kl_penalty(p.log(), q.log(), estimator)).sum()) == pytest.approx(divergence)


def test_k1_has_a_sign_and_the_others_do_not():
    differences = [-2.0, -0.1, 0.0, 0.1, 2.0]
    assert estimate(differences, "k1").tolist() == pytest.approx(differences)
    assert (estimate(differences, "k2") >= 0).all()
    assert (estimate(differences, "k3") >= 0).all()


def test_k3_keeps_its_digits_near_zero_in_fp32():
    # d^2/2 at 2^-12 is 2.98e-8, less than the fp32 spacing at 1: exp(-d) - 1 + d would be rounding noise.
    d = 2.0**-12
    log_probs = torch.tensor([d], dtype=torch.float32)
    value = float(kl_penalty(log_probs, torch.zeros(1), "k3"))
    assert value == pytest.approx(d * d / 2, rel=1e-3)


def test_extremes_are_clamped_at_twenty_and_not_before():
    # At d = -15 the gradient of k3, 1 - e^15, is still there (verl cuts the value at 10, and the gradient with it).
    log_probs = torch.tensor([-18.0, -1000.0], requires_grad=True)
    value = kl_penalty(log_probs, torch.tensor([-3.0, 0.0]), "k3")
    value.sum().backward()
    assert value.isfinite().all()
    assert float(log_probs.grad[0]) == pytest.approx(1 - math.exp(15), rel=1e-5)
    assert float(log_probs.grad[1]) == 0


def test_low_precision_is_raised_to_fp32():
    assert kl_penalty(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2), "k3").dtype == torch.float32


def test_unknown_estimator():
    with pytest.raises(ConfigError, match="k1, k2, k3"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "full")
