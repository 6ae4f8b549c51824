"""Quantiles and effective sample size of the ratio: by hand, against sorting, and whatever the split."""

import math

import pytest
import torch

from cfpo_hybrid import PolicyLossInputs
from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.policy_loss import TrustRegion
from cfpo_hybrid.algorithms.token_metrics import QUANTILES, token_metrics


def inputs_of(log_ratio, mask=None):
    log_ratio = torch.as_tensor(log_ratio)
    mask = torch.ones(len(log_ratio), dtype=torch.bool) if mask is None else mask
    return PolicyLossInputs(log_ratio, torch.zeros_like(log_ratio), torch.ones_like(log_ratio), mask)


def reduced(*parts):
    sums = MetricSums()
    for inputs in parts:
        sums.add(token_metrics(inputs, torch.zeros_like(inputs.log_ratio), TrustRegion()))
    return sums.reduce()


@pytest.mark.parametrize("spread", [1e-5, 1e-2, 0.3, 3.0])
def test_quantiles_are_those_of_sorted_ratios_within_a_bin(spread):
    log_ratio = spread * torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = reduced(inputs_of(log_ratio))
    for share in QUANTILES:
        exact = float(torch.quantile(log_ratio, share, interpolation="lower"))
        after = float(torch.quantile(log_ratio, share, interpolation="higher"))
        half_bin = 0.0101 * max(abs(exact), abs(after)) + 1.01e-5
        assert exact - half_bin <= math.log(found[f"actor/ratio_q{100 * share:02.0f}"]) <= after + half_bin


def test_quantiles_of_a_few_tokens():
    # 99 tokens at r = 1 and one at r = e: the first 99 % are at 1
    found = reduced(inputs_of([0.0] * 98 + [1.0, 1.0]))
    assert [found[f"actor/ratio_q{share}"] for share in ("01", "05", "25", "50", "75", "95")] == [1.0] * 6
    assert found["actor/ratio_q99"] == pytest.approx(math.e, rel=0.01)


def test_clamped_and_broken_tokens_have_bins_too():
    found = reduced(inputs_of([-1e4, float("nan"), 1e4]))
    assert found["actor/ratio_q01"] == pytest.approx(math.exp(-20), rel=0.2)
    assert found["actor/ratio_q50"] == 1.0
    assert found["actor/ratio_q99"] == pytest.approx(math.exp(20), rel=0.2)


def test_effective_sample_size_by_hand():
    # r = 1 and 3: (1 + 3)^2 / (2 (1 + 9)) = 16 / 20
    assert reduced(inputs_of(torch.tensor([1.0, 3.0]).log()))["actor/ess"] == pytest.approx(0.8)
    # One token outweighs 9 others
    assert reduced(inputs_of([20.0] + [0.0] * 9))["actor/ess"] == pytest.approx(0.1, rel=1e-6)
    assert reduced(inputs_of([0.0] * 7))["actor/ess"] == 1.0


def test_neither_the_split_nor_the_padding_matters():
    log_ratio = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = torch.cat([log_ratio, torch.full((3,), 5.0)])
    mask = torch.arange(43) < 40
    whole = reduced(inputs_of(padded, mask))
    parts = [inputs_of(log_ratio[part]) for part in (slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 40))]
    assert reduced(*parts) == pytest.approx(whole, rel=1e-12)
    assert reduced(inputs_of(log_ratio)) == whole


def test_of_nothing_there_are_none():
    assert reduced(inputs_of([])) == {}
