from collections.abc import Iterator

import pytest
from math_verify import parse, verify
from reward_verdicts import PAIRS

from workers.config import RewardConfig
from workers.reward.grader_pool import GraderPool, Status
from workers.reward.scorers import MathScorer, Response, Scores

# Where math-verify alone is right, both say so.
AGREED = [
    ("42", "42", True),
    ("42", "43", False),
    ("50", r"50\%", True),
    (r"50\%", "1/2", True),
    ("1000", "1{,}000", True),
    ("1/3", "0.3333333", True),
    ("1/3", "0.333", False),
    (r"3\frac{1}{2}", "3.5", True),
    (r"\frac{6}{8}", r"\frac34", True),
    (r"-\frac{1}{2}", r"\frac{1}{-2}", True),
    (r"45^\circ", "45", True),
    ("5", r"5\text{ cm}", True),
    (r"\$5", r"\$5.00", True),
    (r"\text{east}", r"\text{West}", False),
    (r"\text{(A)}", "A", True),
    ("A", "B", False),
    ("x=5", "5", True),
    ("x=5", "y=5", False),
    ("y=2x+1", "y=1+2x", True),
    (r"\{1,2,3\}", r"\{3,2,1\}", True),
    ("1,2", "2,1", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "[1,2]", False),
    ("(1, 2)", r"\left(1,2\right)", True),
    (r"x\le 3", r"(-\infty,3]", True),
    (r"x \in [1,2]", "[1,2]", True),
    (r"[1,2]\cup[3,4]", r"[3,4]\cup[1,2]", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"2\sqrt{3}", r"3\sqrt{2}", False),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}", True),
    (r"\pi/2", r"\frac{\pi}{2}", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
    ("1+2i", "2i+1", True),
    ("2^{10}", "1024", True),
    (r"-\infty", r"\infty", False),
    (r"5 \text{ or } 7", "5,7", True),
    (r"\pm 2", "2,-2", True),
    (r"6.02 \cdot 10^{23}", r"6.02\times 10^{23}", True),
    ("12", r"0.12\%", False),
    ("x", "y", False),
]

# Where math-verify alone is wrong, as used here or in other spellings of its call, ours are right.
CORRECTED = [
    ("50%", r"50\%", True),
    (r"50\%", "50", True),
    ("1/2", r"50\%", True),
    ("42", "42.", True),
    ("42.", "42", True),
    ("3.2e5", r"3.2\times 10^5", True),
    (r"3.2\times 10^5", "3.2e5", True),
    ("x = 3.2e5 + y", r"x = 3.2\times 10^5 + y", True),
    (r"(-\infty,3]", "x<=3", True),
    (r"(-\infty,3]", r"x \le 3", True),
    ("(1,3)", "1<x<3", True),
    (r"(-\infty,3]", "x<3", False),
    ("101_3", "101_2", False),
    ("101_2", "101_2", True),
    ("7/2", "3 1/2", True),
    (r"\emptyset", r"\varnothing", True),
]


TOWER = "10^{10^{10}}"
"""Beside another number it costs a process all of its time: see the test of it."""


def response(truth: str, answer: str) -> Response:
    return Response(problem="", text=rf"It is $\boxed{{{answer}}}$.", ground_truth=truth)


def rewards(scores: Scores) -> list[float]:
    return [grade.score for grade in scores.grades]


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    scorer = MathScorer(RewardConfig(num_processes=1, timeout_seconds=120.0))
    yield scorer
    scorer.close()


@pytest.mark.slow
def test_verdicts_of_math_verify_where_it_is_right(scorer: MathScorer):
    ours = rewards(scorer.score([response(truth, answer) for truth, answer, _ in AGREED]))
    # The reference and the answer as boxes, an inequality being an interval: the call that gets most of them right.
    alone = [
        verify(parse(rf"\boxed{{{truth}}}"), parse(rf"\boxed{{{answer}}}"), allow_set_relation_comp=True)
        for truth, answer, _ in AGREED
    ]
    assert alone == [right for *_, right in AGREED]
    assert [score == 1.0 for score in ours] == alone


def test_right_where_math_verify_is_wrong(scorer: MathScorer):
    ours = rewards(scorer.score([response(truth, answer) for truth, answer, _ in CORRECTED]))
    wrong = [case for case, score in zip(CORRECTED, ours, strict=True) if (score == 1.0) is not case[2]]
    assert not wrong


def test_final_verdicts_of_the_table(scorer: MathScorer):
    assert len(PAIRS) >= 150
    assert sum(not right for *_, right in PAIRS) >= len(PAIRS) / 2
    for swapped in (False, True):
        cases = [(answer, truth, right) if swapped else (truth, answer, right) for truth, answer, right in PAIRS]
        cases = [case for case in cases if TOWER not in case]
        ours = rewards(scorer.score([response(truth, answer) for truth, answer, _ in cases]))
        assert [case for case, score in zip(cases, ours, strict=True) if (score == 1.0) is not case[2]] == []


def test_reference_is_a_solution_or_a_bare_answer(scorer: MathScorer):
    solution = r"We add: $1+1=2$, so the answer is $\boxed{2}$. Not \boxed{3, unclosed."
    texts = [r"\boxed{2}", r"\boxed{1}", "2", r"\boxed{}"]
    for truth in (solution, "2", "2.0"):
        scores = scorer.score([Response(problem="", text=text, ground_truth=truth) for text in texts])
        assert rewards(scores) == [1.0, 0.0, 0.0, 0.0]
        # Neither an answer without a box nor an empty box counts as an answer.
        assert scores.counts["reward/unboxed"] == 2
        assert scores.counts["reward/left_to_math_verify"] == 0


def test_only_the_end_of_a_response_is_looked_at():
    scorer = MathScorer(RewardConfig(num_processes=1, max_answer_chars=20))
    texts = [r"\boxed{2}" + " " * 11, r"\boxed{2}" + " " * 12, r"\boxed{" + "2" * 100_000 + "}", "{" * 100_000]
    scores = scorer.score([Response(problem="", text=text, ground_truth="2") for text in texts])
    scorer.close()
    assert rewards(scores) == [1.0, 0.0, 0.0, 0.0]


def test_open_pairs_are_asked_once_and_remembered(scorer: MathScorer, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[object]] = []
    run = GraderPool.run
    monkeypatch.setattr(GraderPool, "run", lambda pool, calls: asked.append(list(calls)) or run(pool, calls))
    batch = [response("a+b+1", "1+b+a"), response("a+b+1", "a+b"), response("a+b+1", "1+b+a"), response("7", "7")]
    first, second = scorer.score(batch), scorer.score(batch)
    assert rewards(first) == rewards(second) == [1.0, 0.0, 1.0, 1.0]
    assert sorted(map(str, asked[0])) == [str(("a+b+1", "1+b+a")), str(("a+b+1", "a+b"))]
    assert asked[1] == []
    assert first.counts["reward/left_to_math_verify"] == 3


@pytest.mark.slow
def test_a_tower_of_powers_times_out_and_hurts_no_other_answer():
    scorer = MathScorer(RewardConfig(num_processes=2, timeout_seconds=3.0))
    batch = [response(f"{n}+x", f"x+{n}") for n in range(6)]
    tower = response("5+x", "10^{10^{10}}")
    try:
        # Twice the same: a timeout is no verdict, so it is not remembered.
        for _ in range(2):
            scores = scorer.score([*batch[:2], tower, *batch[2:], tower])
            assert rewards(scores) == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
            assert scores.counts["reward/timeouts"] == 2
            assert scores.counts["reward/failures"] == 0
            assert scores.grades[2].status is Status.TIMEOUT
            assert "3 s" in scores.grades[2].detail
    finally:
        scorer.close()


@pytest.mark.slow
def test_hostile_answers_score_zero_and_the_pool_lives_on():
    scorer = MathScorer(RewardConfig(num_processes=2, timeout_seconds=1.0, max_answer_chars=100_000))
    hostile = [
        "{" * 40_000 + "}" * 40_000,
        "1+" * 40_000 + "1",
        r"\sqrt{" * 5_000 + "}" * 5_000,
    ]
    try:
        scores = scorer.score([response("x+1", answer) for answer in hostile])
        assert rewards(scores) == [0.0] * len(hostile)
        assert rewards(scorer.score([response("x+1", "1+x")])) == [1.0]
    finally:
        scorer.close()


def test_an_answer_that_cannot_be_compared_counts_as_a_failure(scorer: MathScorer):
    scores = scorer.score([response(r"\frac{1}{0}", "x"), response("5+x", "x+5")])
    assert rewards(scores) == [0.0, 1.0]
    assert scores.counts["reward/failures"] == 1
    assert scores.grades[0].status is Status.FAILED
