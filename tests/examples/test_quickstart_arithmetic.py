import random
from collections import Counter

import pytest
from example_scripts import load_example

arithmetic = load_example("quickstart/arithmetic.py")
Fault, Problem, worked_solution = arithmetic.Fault, arithmetic.Problem, arithmetic.worked_solution


def test_a_clean_solution_is_right_line_by_line():
    assert worked_solution(Problem(47, (8, 5))) == "47+8=55, 55+5=60, so \\boxed{60}."
    rng = random.Random(0)
    for problem in arithmetic.draw_problems(300, rng, set()):
        solution = worked_solution(problem)
        assert solution.endswith(f"\\boxed{{{problem.answer}}}.")
        for step in solution.split(", ")[:-1]:
            terms, total = step.split("=")
            assert sum(map(int, terms.split("+"))) == int(total)
        assert len(problem.text) + 2 <= arithmetic.MAX_PROMPT_LENGTH
        assert len(solution) + 1 <= arithmetic.MAX_RESPONSE_LENGTH


def test_each_fault():
    problem = Problem(47, (8, 5))
    assert worked_solution(problem, Fault.NO_BOX) == "47+8=55, 55+5=60, so 60."
    miscounts = {worked_solution(problem, Fault.MISCOUNT, random.Random(seed)) for seed in range(50)}
    assert miscounts == {
        "47+8=54, 54+5=59, so \\boxed{59}.",
        "47+8=56, 56+5=61, so \\boxed{61}.",
        "47+8=55, 55+5=59, so \\boxed{59}.",
        "47+8=55, 55+5=61, so \\boxed{61}.",
    }


def test_solutions_are_mixed_in_the_stated_shares():
    rng, problem, count = random.Random(1), Problem(47, (5, 3, 4)), 4000
    clean = worked_solution(problem)
    found = Counter()
    for _ in range(count):
        text = arithmetic.mixed_solution(problem, rng)
        found["clean" if text == clean else "miscount" if "boxed" in text else "no box"] += 1
    shares = arithmetic.FAULT_SHARES
    assert found["miscount"] / count == pytest.approx(shares[Fault.MISCOUNT], abs=0.02)
    assert found["no box"] / count == pytest.approx(shares[Fault.NO_BOX], abs=0.02)
    assert found["clean"] / count == pytest.approx(1 - sum(shares.values()), abs=0.02)


def test_the_level_counts_the_carries():
    assert Problem(41, (1, 1, 1)).level == 1
    assert Problem(47, (5, 5, 5)).level == 3  # 47+5=52 and 57+5=62 run over, 52+5=57 does not


def test_drawn_problems_are_distinct_and_avoid_those_taken():
    rng, taken = random.Random(0), set()
    first = arithmetic.draw_problems(500, rng, taken)
    second = arithmetic.draw_problems(500, rng, taken)
    assert len(set(first) | set(second)) == 1000 == len(taken)
    assert {problem.level for problem in first} <= {1, 2, 3, 4}


def test_records_have_the_columns_of_math():
    assert Problem(47, (8, 5)).record() == {
        "problem": "Add 47+8+5.",
        "solution": "47+8=55, 55+5=60, so \\boxed{60}.",
        "level": "Level 3",
        "type": "Addition",
    }
