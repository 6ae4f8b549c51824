"""Means with standard errors, pass@k against counting every draw, and majority voting by hand."""

import math
from itertools import combinations

import pytest
import torch

from trainer.evaluation.scores import equal_answers, majority_chance, mean_and_error, pass_at_k, powers_up_to

NAN = float("nan")


def test_the_error_of_whole_rows_is_that_of_the_problems_means():
    values = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    mean, error = mean_and_error(values)
    of_problems = values.mean(dim=1).double()
    assert mean == pytest.approx(float(of_problems.mean()))
    assert error == pytest.approx(float(of_problems.std() / math.sqrt(3)))


def test_equal_responses_to_a_problem_tell_no_more_than_one():
    once = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]])
    assert mean_and_error(once.repeat(1, 8)) == pytest.approx(mean_and_error(once))


def test_what_has_no_value_counts_nowhere():
    # Of 1, 0 and 1, 1 the mean is 3/4. The problems lie 1 - 2 x 3/4 = -1/2 and 1/2 from it: sqrt(2/1 x 1/2) / 4.
    mean, error = mean_and_error(torch.tensor([[1.0, 0.0, NAN], [NAN, NAN, NAN], [1.0, NAN, 1.0]]))
    assert (mean, error) == pytest.approx((0.75, 0.25))
    assert mean_and_error(torch.tensor([[1.0, 0.0], [NAN, NAN]])) == (0.5, None)
    assert mean_and_error(torch.full((3, 2), NAN)) == (None, None)
    assert mean_and_error(torch.zeros(0, 2)) == (None, None)


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


@pytest.mark.parametrize(
    ("correct", "answers", "chance"),
    [
        ([True, True, False], ["2", "2", "3"], 1.0),
        ([True, False, False], ["2", "3", "3"], 0.0),
        ([True, False], ["2", "3"], 0.5),  # a tie is broken by lot
        ([True, False, False, False], ["2", "3", None, None], 0.5),  # those without an answer do not vote
        ([True, True, False, False], [r"\frac{1}{2}", "0.5", "1/3", "0.2"], 1.0),  # one answer in two spellings
        ([False, False, True], [None, None, "2"], 1.0),
        ([False, False], [None, None], 0.0),
    ],
)
def test_the_most_frequent_answer(correct: list[bool], answers: list[str | None], chance: float):
    assert majority_chance(correct, answers) == chance


def test_classes_of_equal_answers():
    answers = ["60 minutes", "1 hour", "2", "½", None, r"\dfrac12", "2.0", "2 hours"]
    assert equal_answers(answers) == [[0, 1], [2, 6, 7], [3, 5]]  # a unit on one side only may be missing
