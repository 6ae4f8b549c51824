"""Sums of two or three numbers, worked column by column, cleanly or with one fault.

    What is 47+85+36?   ->   7+5+6=18, 4+8+3+1=16, so \\boxed{168}

Reinforcement can only prefer what a model already does now and then. So the base model is warmed up on solutions of
mixed quality, as text from the wild is: it knows how to carry and how to box an answer, but more often than not it
does one of them wrong.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_SHAPES = ((2, 2), (3, 2), (2, 3), (3, 3))
"""(how many numbers, digits of each) of level 1, 2, 3 and 4."""


class Fault(StrEnum):
    """What is wrong with a worked solution."""

    NONE = "none"
    FORGOTTEN_CARRY = "forgotten_carry"
    """No column receives the carry of the one before; harmless where nothing is carried."""
    MISCOUNT = "miscount"
    """One column's sum is off by one."""
    NO_BOX = "no_box"
    """The right answer without its box."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Numbers to add up.

    Args:
        numbers: the summands, all of the same number of digits.
        level: 1 to 4, from the number of summands and digits.
    """

    numbers: tuple[int, ...]
    level: int

    @property
    def text(self) -> str:
        """The question."""
        return f"What is {'+'.join(map(str, self.numbers))}?"

    def record(self) -> dict[str, str]:
        """The problem with its clean solution, under the column names of the MATH data set."""
        return {
            "problem": self.text,
            "solution": worked_solution(self, Fault.NONE, random.Random(0)),
            "level": f"Level {self.level}",
            "type": "Sums of two" if len(self.numbers) == 2 else "Sums of three",
        }


def draw_problem(rng: random.Random) -> Problem:
    """A random problem; every level is equally likely."""
    level = rng.randrange(len(_SHAPES))
    count, digits = _SHAPES[level]
    numbers = tuple(rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(count))
    return Problem(numbers, level + 1)


def draw_problems(count: int, rng: random.Random, taken: set[Problem]) -> list[Problem]:
    """``count`` problems that differ from each other and from ``taken``, to which they are added."""
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = draw_problem(rng)
        if problem not in taken:
            taken.add(problem)
            drawn.append(problem)
    return drawn


def worked_solution(problem: Problem, fault: Fault, rng: random.Random) -> str:
    """The sum worked from the ones column on, with the given fault.

    Args:
        problem: the sum.
        fault: what goes wrong.
        rng: chooses the column and the direction of a miscount.
    """
    digits = len(str(problem.numbers[0]))
    off_column = rng.randrange(digits) if fault is Fault.MISCOUNT else -1
    steps: list[str] = []
    answer, carry = "", 0
    for column in range(digits):
        terms = [number // 10**column % 10 for number in problem.numbers]
        if carry and fault is not Fault.FORGOTTEN_CARRY:
            terms.append(carry)
        total = sum(terms)
        if column == off_column:
            total += rng.choice((-1, 1)) if total else 1
        steps.append(f"{'+'.join(map(str, terms))}={total}")
        carry, ones = divmod(total, 10)
        answer = str(total if column == digits - 1 else ones) + answer
    ending = f"so {answer}." if fault is Fault.NO_BOX else f"so \\boxed{{{answer}}}."
    return ", ".join([*steps, ending])


def mixed_solution(problem: Problem, shares: Sequence[tuple[Fault, float]], rng: random.Random) -> str:
    """A worked solution whose fault is drawn by the given shares; what they leave of 1 is clean."""
    point = rng.random()
    for fault, share in shares:
        point -= share
        if point < 0:
            return worked_solution(problem, fault, rng)
    return worked_solution(problem, Fault.NONE, rng)
