"""Sums of metrics: means over unequal parts, extremes, one reduction a kind; and how the ratio of tokens is distributed."""

import math

import pytest
import torch

from cfpo_hybrid import PolicyLossInputs
from cfpo_hybrid.algorithms.metrics import QUANTILES, Metric, MetricSums, token_metrics
from cfpo_hybrid.algorithms.policy_loss import TrustRegion


def part(share, count, total, high, low):
    return {
        "share": Metric.mean(torch.tensor(share), torch.tensor(count)),
        "total": Metric.total(torch.tensor(total)),
        "high": Metric.largest(torch.tensor(high)),
        "low": Metric.smallest(torch.tensor(low)),
    }


def test_parts_of_unequal_size():
    sums = MetricSums()
    sums.add(part(3.0, 4, 0.5, 7.0, -1.0))
    sums.add(part(0.0, 12, 0.25, 9.0, 2.0))
    # 3 / 16, not the mean of 3/4 and 0
    assert sums.reduce() == {"share": 3 / 16, "total": 0.75, "high": 9.0, "low": -1.0}


def test_one_reduction_of_sums_and_one_of_extremes():
    calls = []

    def two_equal_ranks(vector, operation):
        calls.append(operation)
        return vector * 2 if operation == "sum" else vector

    sums = MetricSums()
    sums.add(part(3.0, 4, 0.5, 7.0, -1.0))
    assert sums.reduce(two_equal_ranks) == {"share": 0.75, "total": 1.0, "high": 7.0, "low": -1.0}
    assert calls == ["sum", "max"]


def test_means_and_extremes_of_nothing_are_left_out():
    sums = MetricSums()
    sums.add(part(0.0, 0, 0.0, -torch.inf, torch.inf))
    assert sums.reduce() == {"total": 0.0}


def test_an_empty_part_changes_nothing():
    sums = MetricSums()
    sums.add(part(1.0, 2, 0.5, -3.0, -4.0))
    sums.add(part(0.0, 0, 0.0, -torch.inf, torch.inf))
    assert sums.reduce() == {"share": 0.5, "total": 0.5, "high": -3.0, "low": -4.0}


def test_numbers_that_are_worked_out_of_sums():
    def spread(name, sums):
        total, squares, count = sums
        return {f"{name}/variance": squares / count - (total / count) ** 2, f"{name}/count": count}

    sums = MetricSums()
    for values in ((1.0, 2.0), (6.0,)):
        tensor = torch.tensor(values)
        metric = Metric.of_sums(tensor.sum(), tensor.square().sum(), torch.tensor(len(values)), finish=spread)
        sums.add({"spread": metric, **part(1.0, 2, 0.5, 7.0, -1.0)})
    # 1, 2 and 6 have the mean 3 and the variance (4 + 1 + 9) / 3; their neighbours in the vector are none the wiser.
    expected = {
        "spread/variance": 41 / 3 - 9,
        "spread/count": 3.0,
        "share": 0.5,
        "total": 1.0,
        "high": 7.0,
        "low": -1.0,
    }
    assert sums.reduce() == expected
    assert sums.reduce(lambda vector, operation: 2 * vector if operation == "sum" else vector)["spread/count"] == 6.0


def test_nothing_added_gives_nothing():
    assert MetricSums().reduce() == {}


def test_large_counts_stay_exact():
    # 2^24 + 1 is no fp32 number
    sums = MetricSums()
    for value in (2**24, 1):
        sums.add({"tokens": Metric.total(torch.tensor(value))})
    assert sums.reduce() == {"tokens": 2.0**24 + 1}


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
