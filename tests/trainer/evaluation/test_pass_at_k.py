from itertools import combinations

import pytest
import torch

from trainer.evaluation.pass_at_k import pass_at_k, powers_up_to


def brute_force(row: list[bool], k: int) -> float:
    draws = list(combinations(row, k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_equals_counting_every_draw(k: int):
    rows = [[True, False, False, False, False], [False] * 5, [True] * 5, [True, True, False, True, False]]
    expected = sum(brute_force(row, k) for row in rows) / len(rows)
    assert pass_at_k(torch.tensor(rows), k) == pytest.approx(expected)


def test_pass_at_one_is_the_share_of_right_responses():
    # 3 of 8 responses are right
    assert pass_at_k(torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool(), 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers(samples: int, expected: list[int]):
    assert powers_up_to(samples) == expected
