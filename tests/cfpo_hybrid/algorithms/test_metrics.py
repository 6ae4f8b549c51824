"""Sums of metrics: right means over unequal parts, extremes, one reduction a kind."""

import torch

from cfpo_hybrid.algorithms.metrics import Metric, MetricSums


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
