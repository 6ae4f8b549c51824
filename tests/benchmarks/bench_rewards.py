"""Seconds to score a batch of 512 math responses: our two tiers beside math-verify alone, and where they disagree.

Run: .venv/bin/python tests/benchmarks/bench_rewards.py
"""

import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from operator import eq
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from math_verify import parse, verify
from reward_verdicts import TABLE
from rich.console import Console
from rich.table import Table

from workers.config import RewardConfig
from workers.reward.answers import last_boxed
from workers.reward.scorers import MathScorer, Response

NUM_PROBLEMS, GROUP_SIZE, REPEATS = 64, 8, 3
# Reference, right spellings, wrong answers. The mix follows MATH: seven tenths integers, fractions, a few of the rest.
OPEN_PROBLEMS = [
    (r"2\sqrt{3}", [r"2\sqrt{3}", r"\sqrt{12}"], [r"3\sqrt{2}", r"\sqrt{6}", "4"]),
    (r"(-\infty, 3]", [r"(-\infty,3]", r"x \le 3"], [r"(-\infty,3)", r"(3,\infty)"]),
    (r"x^2+3x-4", [r"x^2+3x-4", "(x+4)(x-1)"], ["x^2-3x+4", "x^2+4"]),
    (r"\frac{\pi}{3}", [r"\frac{\pi}{3}", r"\pi/3"], [r"\frac{\pi}{6}", "60"]),
    (r"\text{Tuesday}", [r"\text{Tuesday}", "Tuesday"], [r"\text{Monday}"]),
    ("(3, -5)", ["(3,-5)", r"\left(3, -5\right)"], ["(-5,3)", "(3,5)"]),
    (r"1+2i", ["1+2i", "2i+1"], ["1-2i"]),
    (r"2,5", ["2,5", "5, 2"], ["2", "2,6"]),
]


def problem(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """A reference answer, right spellings of it and wrong answers."""
    kind = rng.random()
    if kind < 0.7:
        value = rng.randint(-20, 400)
        return str(value), [str(value)] * 9 + [f"{value}."], [str(value + rng.randint(1, 9)) for _ in range(3)]
    if kind < 0.87:
        top, bottom = rng.randint(1, 30), rng.randint(2, 12)
        right = [rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}"]
        return right[0], right, [rf"\frac{{{top + 1}}}{{{bottom}}}", rf"\frac{{{bottom}}}{{{top}}}", str(top)]
    return rng.choice(OPEN_PROBLEMS)


def batch(seed: int) -> list[Response]:
    """Half right, half wrong responses of about a thousand characters each."""
    rng = random.Random(seed)
    work = "We add the terms on both sides, collect what is left, and divide. Then $x = 3$ and $y = 4$. " * 10
    responses = []
    for number in range(NUM_PROBLEMS):
        truth, right, wrong = problem(rng)
        for _ in range(GROUP_SIZE):
            answer = rng.choice(right if rng.random() < 0.5 else wrong)
            text = rf"{work}So the answer is $\boxed{{{answer}}}$."
            responses.append(Response(problem=str(number), text=text, ground_truth=truth))
    return responses


def math_verify_alone(responses: list[Response]) -> list[float]:
    """What a user of math-verify writes: parse both, verify, one by one."""
    return [
        float(verify(parse(rf"\boxed{{{one.ground_truth}}}"), parse(one.text), allow_set_relation_comp=True))
        for one in responses
    ]


def timed(score: Callable[[list[Response]], list[float]], batches: list[list[Response]]) -> tuple[float, list[float]]:
    """Median seconds a batch, and all rewards."""
    seconds, rewards = [], []
    for responses in batches:
        begin = time.perf_counter()
        rewards += score(responses)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), rewards


def print_agreement(console: Console) -> None:
    """Final verdicts on the table of ``tests/reward_verdicts.py`` beside those of math-verify alone."""
    table = Table("kind", "pairs", "ours right", "math-verify right", title="Verdicts on tests/reward_verdicts.py")
    differences = []
    with closing(MathScorer(RewardConfig(num_processes=2))) as scorer:
        for kind, verdicts in TABLE.items():
            cases = [(pair, right) for right, pairs in verdicts.items() for pair in pairs]
            batch = [
                Response(problem="", text=rf"\boxed{{{answer}}}", ground_truth=truth) for (truth, answer), _ in cases
            ]
            ours = [grade.score == 1.0 for grade in scorer.score(batch).grades]
            alone = [score == 1.0 for score in math_verify_alone(batch)]
            expected = [right for _, right in cases]
            table.add_row(kind, str(len(cases)), *(str(sum(map(eq, found, expected))) for found in (ours, alone)))
            differences += [
                (*pair, one) for (pair, _), one, other in zip(cases, ours, alone, strict=True) if one != other
            ]
    console.print(table)
    for truth, answer, verdict in differences:
        console.print(f"  {truth}  beside  {answer}: {int(verdict)}, math-verify {int(not verdict)}", markup=False)


def main() -> None:
    batches = [batch(seed) for seed in range(REPEATS)]
    scorer = MathScorer(RewardConfig(num_processes=2))
    math_verify_alone(batch(99))
    scorer.score(batch(99))
    left = [scorer.score(batch(50 + n)).counts["reward/left_to_math_verify"] for n in range(REPEATS)]
    scorer.close()
    scorer = MathScorer(RewardConfig(num_processes=2))
    scorer.score([Response(problem="", text=r"\boxed{x+1}", ground_truth="y")])

    def ours(responses: list[Response]) -> list[float]:
        return [grade.score for grade in scorer.score(responses).grades]

    ours_seconds, ours_rewards = timed(ours, batches)
    cached_seconds, _ = timed(ours, batches)
    scorer.close()
    alone_seconds, alone_rewards = timed(math_verify_alone, batches)

    table = Table("", "seconds a batch", "answers/s", title=f"{NUM_PROBLEMS} x {GROUP_SIZE} responses, half right")
    rows = [
        ("two tiers, 2 processes, empty cache", ours_seconds),
        ("the same, cache filled", cached_seconds),
        ("math-verify alone, 1 process", alone_seconds),
    ]
    for name, seconds in rows:
        table.add_row(name, f"{seconds:.3f}", f"{NUM_PROBLEMS * GROUP_SIZE / seconds:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"left to math-verify: {statistics.median(left):.0f} of {NUM_PROBLEMS * GROUP_SIZE}")
    pairs = {
        (one.ground_truth, last_boxed(one.text), ours, alone)
        for one, ours, alone in zip(itertools.chain(*batches), ours_rewards, alone_rewards, strict=True)
        if ours != alone
    }
    dots = sum(str(answer).endswith(".") for _, answer, *_ in pairs)
    others = sorted(pair for pair in pairs if not str(pair[1]).endswith("."))
    console.print(f"different verdicts: {dots} answers with a trailing dot, and {others}", markup=False)
    print_agreement(console)


if __name__ == "__main__":
    main()
