r"""Running sums worked step by step, cleanly or with one fault.

    Add 47+8+5+3.   ->   47+8=55, 55+5=60, 60+3=63, so \boxed{63}.

Reinforcement can only prefer what a model already does now and then. So the base model is warmed up on solutions of
mixed quality, as text from the wild is: it knows how to add and how to box an answer, but more often than not it slips
on a step or forgets the box.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

MAX_PROMPT_LENGTH, MAX_RESPONSE_LENGTH = 32, 64
"""Bounds in characters of every prompt (chat template included) and response."""

NUM_DIGITS = 3
"""Digits to add in every problem."""


class Fault(StrEnum):
    """What is wrong with a worked solution."""

    MISCOUNT = "miscount"
    """One step is off by one."""
    NO_BOX = "no_box"
    """The right answer without its box."""


FAULT_SHARES: dict[Fault, float] = {Fault.MISCOUNT: 0.25, Fault.NO_BOX: 0.35}
"""Shares of faulty solutions in the base model's warm-up; the rest is clean."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A number of two digits and single digits to add to it.

    Args:
        start: the first summand.
        digits: the others.
    """

    start: int
    digits: tuple[int, ...]

    @property
    def level(self) -> int:
        """1 to 4: one more than the steps in which the ones run over."""
        ones, carries = self.start % 10, 0
        for digit in self.digits:
            tens, ones = divmod(ones + digit, 10)
            carries += tens
        return 1 + carries

    @property
    def text(self) -> str:
        """The question."""
        return f"Add {'+'.join(map(str, (self.start, *self.digits)))}."

    @property
    def answer(self) -> int:
        """The sum."""
        return self.start + sum(self.digits)

    def record(self) -> dict[str, str]:
        """The problem with its clean solution, under the column names of the MATH data set."""
        return {
            "problem": self.text,
            "solution": worked_solution(self),
            "level": f"Level {self.level}",
            "type": "Addition",
        }


def draw_problem(rng: random.Random) -> Problem:
    """A random problem. All have the same length, so that a small model learns quickly where to look."""
    return Problem(rng.randint(10, 49), tuple(rng.randint(1, 5) for _ in range(NUM_DIGITS)))


def draw_problems(count: int, rng: random.Random, taken: set[Problem]) -> list[Problem]:
    """``count`` problems that differ from each other and from those ``taken``, to which they are added."""
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = draw_problem(rng)
        if problem not in taken:
            taken.add(problem)
            drawn.append(problem)
    return drawn


def worked_solution(problem: Problem, fault: Fault | None = None, rng: random.Random | None = None) -> str:
    """The sum worked digit by digit, cleanly or with the given fault.

    Args:
        problem: the sum.
        fault: what goes wrong.
        rng: chooses the step and the direction of a miscount.
    """
    off_step, off_by = -1, 0
    if fault is Fault.MISCOUNT:
        rng = rng or random.Random(0)
        off_step, off_by = rng.randrange(len(problem.digits)), rng.choice((-1, 1))
    total, steps = problem.start, []
    for step, digit in enumerate(problem.digits):
        before, total = total, total + digit
        if step == off_step:
            total += off_by
        steps.append(f"{before}+{digit}={total}")
    ending = f"so {total}." if fault is Fault.NO_BOX else f"so \\boxed{{{total}}}."
    return ", ".join([*steps, ending])


def mixed_solution(problem: Problem, rng: random.Random) -> str:
    """A solution as the warm-up shows it: clean, or with a fault drawn by ``FAULT_SHARES``."""
    (fault,) = rng.choices([*FAULT_SHARES, None], [*FAULT_SHARES.values(), 1 - sum(FAULT_SHARES.values())])
    return worked_solution(problem, fault, rng)
