"""The two ways to score responses: math answers in two tiers, and a user's function. Both use the same pool."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workers.config import RewardConfig
from workers.reward.answers import last_boxed, quick_verdict
from workers.reward.grader import MATH_VERIFY
from workers.reward.grader_pool import Grade, GraderPool, Status
from workers.reward.quantity import Pair
from workers.reward.user_function import MATH, find_reward

CACHED_VERDICTS = 8192
"""Verdicts of math-verify that are remembered; with answers of 4,096 characters they fill 64 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    r"""One response to score.

    Args:
        problem: the problem's text, before the chat template.
        text: the decoded response, without special tokens.
        ground_truth: the reference: a bare answer, or a solution that boxes it.
        extra: further fields of the data set.

    Example: ``Response(problem="1+1?", text=r"So \boxed{2}", ground_truth="2")``
    """

    problem: str
    text: str
    ground_truth: str
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """Grades of a batch, a row each, and counts of what it took.

    Args:
        grades: one a response.
        counts: metric name to a number of responses.
    """

    grades: list[Grade]
    counts: dict[str, int]


class Scorer(Protocol):
    """Scores responses, one number each."""

    def score(self, responses: Sequence[Response]) -> Scores:
        """Grades in the order of the responses."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


def build_scorer(config: RewardConfig) -> Scorer:
    """The scorer that ``reward.name`` asks for.

    Raises:
        RewardError: a user's function that cannot be found or loaded.
    """
    name = find_reward(config.name)
    return MathScorer(config) if name == MATH else UserFunctionScorer(name, config)


class UserFunctionScorer:
    """Calls ``fn(problem, response, ground_truth, extra)`` for every response.

    Raises:
        RewardError: the function cannot be loaded.
    """

    def __init__(self, name: str, config: RewardConfig) -> None:
        self._pool = GraderPool(name, num_processes=config.num_processes, timeout_seconds=config.timeout_seconds)
        self._pool.wait_until_ready()

    def score(self, responses: Sequence[Response]) -> Scores:
        """Grades in the order of the responses."""
        grades = self._pool.run([(one.problem, one.text, one.ground_truth, dict(one.extra)) for one in responses])
        return Scores(grades, _failure_counts(grades))

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()


class MathScorer:
    r"""Scores 1 when the last ``\boxed{}`` holds the reference answer, else 0.

    Tier one compares spellings and plain numbers; what it leaves open goes to math-verify in the pool, each pair of
    answers once. A response without a box scores 0.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._max_answer_chars = config.max_answer_chars
        self._pool = GraderPool(MATH_VERIFY, num_processes=config.num_processes, timeout_seconds=config.timeout_seconds)
        self._verdicts: OrderedDict[Pair, Grade] = OrderedDict()

    def score(self, responses: Sequence[Response]) -> Scores:
        """Grades in the order of the responses."""
        pairs = [self._pair(response) for response in responses]
        verdicts = {pair: quick_verdict(*pair) for pair in set(pairs) if pair is not None}
        open_pairs = {pair: verdict for pair, verdict in verdicts.items() if isinstance(verdict, tuple)}
        asked = self._algebra(list(dict.fromkeys(part for parts in open_pairs.values() for part in parts)))
        slow = {pair: _all_of([asked[part] for part in parts]) for pair, parts in open_pairs.items()}
        settled = {pair: Grade(float(verdict is True)) for pair, verdict in verdicts.items()} | slow
        grades = [Grade(0.0) if pair is None else settled[pair] for pair in pairs]
        counts = {
            "reward/unboxed": sum(pair is None for pair in pairs),
            "reward/left_to_math_verify": sum(pair in slow for pair in pairs),
        }
        return Scores(grades, counts | _failure_counts(grades))

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()

    def _pair(self, response: Response) -> Pair | None:
        answer = last_boxed(response.text[-self._max_answer_chars :])
        truth = last_boxed(response.ground_truth) or response.ground_truth
        return (truth, answer) if answer else None

    def _algebra(self, pairs: Sequence[Pair]) -> dict[Pair, Grade]:
        """What math-verify says of the pairs, or has said before."""
        known = {pair: self._verdicts[pair] for pair in pairs if pair in self._verdicts}
        unknown = [pair for pair in pairs if pair not in known]
        graded = self._pool.run(unknown)
        found = known | dict(zip(unknown, graded, strict=True))
        for pair, grade in found.items():
            # A timeout may be the machine's fault and is worth another try.
            if grade.status is Status.SCORED:
                self._verdicts[pair] = grade
                self._verdicts.move_to_end(pair)
        while len(self._verdicts) > CACHED_VERDICTS:
            self._verdicts.popitem(last=False)
        return found


def _all_of(grades: Sequence[Grade]) -> Grade:
    """Right where every part is; a part that is wrong decides even where another has no verdict."""
    return min(grades, key=lambda grade: (grade.score, grade.status is not Status.SCORED))


def _failure_counts(grades: Sequence[Grade]) -> dict[str, int]:
    return {
        "reward/timeouts": sum(grade.status is Status.TIMEOUT for grade in grades),
        "reward/failures": sum(grade.status is Status.FAILED for grade in grades),
    }
