"""The two ways to score responses: math answers in two tiers, and a user's function. Both use the same pool."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from workers.config import RewardConfig
from workers.reward.boxed import last_boxed
from workers.reward.graders import MATH_VERIFY
from workers.reward.grading import Outcome, Response, Scores, Status
from workers.reward.normalize import tidy
from workers.reward.pool import GraderPool
from workers.reward.quick_match import quick_verdict
from workers.reward.user_function import find_reward

CACHED_VERDICTS = 8192
"""Verdicts of math-verify that are remembered; with answers of 4,096 characters they fill 64 MB."""

Pair = tuple[str, str]
"""A reference and an answer."""


class Scorer(Protocol):
    """Scores responses, one number each."""

    def score(self, responses: Sequence[Response]) -> Scores:
        """Outcomes in the order of the responses."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


def build_scorer(config: RewardConfig) -> Scorer:
    """The scorer that ``reward.name`` asks for.

    Raises:
        RewardError: a user's function that cannot be found or loaded.
    """
    function = find_reward(config.name)
    if function is None:
        return MathScorer(config)
    pool = GraderPool(str(function), num_processes=config.num_processes, timeout_seconds=config.timeout_seconds)
    pool.wait_until_ready()
    return UserFunctionScorer(pool)


class UserFunctionScorer:
    """Calls ``fn(problem, response, ground_truth, extra)`` for every response."""

    def __init__(self, pool: GraderPool) -> None:
        self._pool = pool

    def score(self, responses: Sequence[Response]) -> Scores:
        """Outcomes in the order of the responses."""
        outcomes = self._pool.run([(one.problem, one.text, one.ground_truth, dict(one.extra)) for one in responses])
        return Scores(outcomes, _failure_counts(outcomes))

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
        self._verdicts: OrderedDict[Pair, Outcome] = OrderedDict()

    def score(self, responses: Sequence[Response]) -> Scores:
        """Outcomes in the order of the responses."""
        pairs = [self._pair(response) for response in responses]
        quick = {pair: quick_verdict(*pair) for pair in set(pairs) if pair is not None}
        open_pairs = [pair for pair, verdict in quick.items() if verdict is None]
        slow = self._algebra(open_pairs)
        outcomes = [_outcome(pair, quick, slow) for pair in pairs]
        counts = {
            "reward/unboxed": sum(pair is None for pair in pairs),
            "reward/left_to_math_verify": sum(pair in slow for pair in pairs),
        }
        return Scores(outcomes, counts | _failure_counts(outcomes))

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()

    def _pair(self, response: Response) -> Pair | None:
        answer = last_boxed(response.text[-self._max_answer_chars :])
        truth = last_boxed(response.ground_truth) or response.ground_truth
        return (truth, answer) if answer else None

    def _algebra(self, pairs: Sequence[Pair]) -> dict[Pair, Outcome]:
        known = {pair: self._verdicts[pair] for pair in pairs if pair in self._verdicts}
        unknown = [pair for pair in pairs if pair not in known]
        graded = self._pool.run([(tidy(truth), tidy(answer)) for truth, answer in unknown])
        found = known | dict(zip(unknown, graded, strict=True))
        for pair, outcome in found.items():
            # A timeout may be the machine's fault and is worth another try.
            if outcome.status is Status.SCORED:
                self._verdicts[pair] = outcome
                self._verdicts.move_to_end(pair)
        while len(self._verdicts) > CACHED_VERDICTS:
            self._verdicts.popitem(last=False)
        return found


def _outcome(pair: Pair | None, quick: dict[Pair, bool | None], slow: dict[Pair, Outcome]) -> Outcome:
    if pair is None:
        return Outcome(0.0)
    return slow[pair] if pair in slow else Outcome(float(quick[pair] is True))


def _failure_counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {
        "reward/timeouts": sum(outcome.status is Status.TIMEOUT for outcome in outcomes),
        "reward/failures": sum(outcome.status is Status.FAILED for outcome in outcomes),
    }
