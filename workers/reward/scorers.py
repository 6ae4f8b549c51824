"""The two ways to score responses, math answers in two tiers and a user's function, and a sum of several rewards."""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from workers.config import RewardConfig
from workers.reward.answers import last_boxed, quick_verdict
from workers.reward.grader import ARGUMENTS, MATH_VERIFY
from workers.reward.grader_pool import Grade, GraderPool, Status
from workers.reward.quantity import Pair
from workers.reward.user_function import MATH, find_reward

CACHED_VERDICTS = 8192
"""Verdicts of math-verify that are remembered; with answers of 4,096 characters they fill 64 MB."""


_RESERVED = """
    mean std min max groups_all_right groups_all_wrong groups_without_signal timeouts failures unboxed no_opinion clipped
    left_to_math_verify overlong_penalty
"""
RESERVED = frozenset(_RESERVED.split())
"""Names under ``reward/`` that a run uses itself; a function's own numbers need others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    r"""One response to score.

    Args:
        problem: the problem's text, before the chat template.
        text: the decoded response, without special tokens.
        ground_truth: the reference: a bare answer, or a solution that boxes it.
        extra: further fields of the data set.
        marked_text: the response with its special tokens, where a function asks for them.

    Example: ``Response(problem="1+1?", text=r"So \boxed{2}", ground_truth="2")``
    """

    problem: str
    text: str
    ground_truth: str
    extra: Mapping[str, object] = field(default_factory=dict)
    marked_text: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Grades of a batch, a row each, and counts of what it took.

    Args:
        grades: one a response.
        counts: metric name to a number of responses.
        first_failure: of a user's function, with where it happened; "" where all calls went well.
        clipped: how many rewards lay beyond their bounds.
        first_clipped: the first of those, with its bound and its arguments; "" where there is none.
    """

    grades: list[Grade]
    counts: dict[str, int]
    first_failure: str = ""
    clipped: int = 0
    first_clipped: str = ""

    @property
    def failed(self) -> int:
        """Responses without a verdict because of an error or a timeout."""
        return sum(grade.status is not Status.SCORED for grade in self.grades)


class Scorer(Protocol):
    """Scores responses, one number each."""

    def score(self, responses: Sequence[Response]) -> Scores:
        """Grades in the order of the responses."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


def build_scorer(config: RewardConfig, name: str | None = None) -> Scorer:
    """The scorer of one reward, by default the one that ``reward.name`` asks for.

    Raises:
        RewardError: a user's function that cannot be found or loaded.
    """
    found = find_reward(config.name if name is None else name)
    return MathScorer(config) if found == MATH else UserFunctionScorer(found, config)


class UserFunctionScorer:
    """Calls ``fn(problem, response, ground_truth, extra)`` for every response.

    Raises:
        RewardError: the function cannot be loaded, or takes other arguments.
    """

    def __init__(self, name: str, config: RewardConfig) -> None:
        self._name, self._config = name, config
        self._pool = GraderPool(
            name,
            num_processes=config.num_processes,
            timeout_seconds=config.timeout_seconds,
            first_timeout_seconds=config.first_call_timeout_seconds,
            num_arguments=len(ARGUMENTS),
        )
        self._pool.wait_until_ready()

    def score(self, responses: Sequence[Response]) -> Scores:
        """Grades in the order of the responses."""
        calls = [
            (one.problem, one.text if one.marked_text is None else one.marked_text, one.ground_truth, dict(one.extra))
            for one in responses
        ]
        given = [_without_reserved_names(grade) for grade in self._pool.run(calls)]
        grades = [self._clipped(grade) for grade in given]
        beyond = [row for row, grade in enumerate(grades) if grade.score != given[row].score]
        counts = _failure_counts(grades) | {
            "reward/no_opinion": sum(grade.score is None for grade in grades),
            "reward/clipped": len(beyond),
        }
        first_clipped = ""
        if beyond:
            row = beyond[0]
            first_clipped = self._clipping(calls[row], given[row], grades[row])
        return Scores(grades, counts, self._first_failure(calls, grades), len(beyond), first_clipped)

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()

    def _clipped(self, grade: Grade) -> Grade:
        if grade.score is None or grade.status is not Status.SCORED:
            return grade
        lowest, highest = self._config.lowest, self._config.highest
        score = grade.score if lowest is None else max(grade.score, lowest)
        score = score if highest is None else min(score, highest)
        return grade if score == grade.score else replace(grade, score=score)

    def _first_failure(self, calls: Sequence[tuple[object, ...]], grades: Sequence[Grade]) -> str:
        for call, grade in zip(calls, grades, strict=True):
            if grade.status is not Status.SCORED:
                trace = f"\nTraceback (most recent call last):\n{grade.trace}{grade.detail}" if grade.trace else ""
                return f"{self._name}: {grade.detail}\n{_called_with(call)}{trace}"
        return ""

    def _clipping(self, call: tuple[object, ...], given: Grade, kept: Grade) -> str:
        key = "highest" if kept.score == self._config.highest else "lowest"
        return f"{self._name}: {given.score!r} is beyond reward.{key}={kept.score!r}\n{_called_with(call)}"


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


def _called_with(call: Sequence[object]) -> str:
    shown = "\n".join(f"  {name}: {value!r:.2000}" for name, value in zip(ARGUMENTS, call, strict=True))
    return f"called with\n{shown}"


def _all_of(grades: Sequence[Grade]) -> Grade:
    """Right where every part is; a part that is wrong decides even where another has no verdict."""
    return min(grades, key=lambda grade: (grade.score or 0.0, grade.status is not Status.SCORED))


def _without_reserved_names(grade: Grade) -> Grade:
    taken = sorted(RESERVED.intersection(grade.others))
    if not taken:
        return grade
    detail = f"returned a number under '{taken[0]}', a name that the run uses itself; choose another"
    return Grade(0.0, Status.FAILED, detail)


def _failure_counts(grades: Sequence[Grade]) -> dict[str, int]:
    return {
        "reward/timeouts": sum(grade.status is Status.TIMEOUT for grade in grades),
        "reward/failures": sum(grade.status is Status.FAILED for grade in grades),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRewards:
    """What a batch earns.

    Args:
        totals: the weighted sum of the rewards of each response; NaN where none has an opinion.
        parts: of each response by name: each of several rewards, and the numbers that functions returned beside theirs;
            None where there is no opinion.
        firsts: the reward by ``reward.name`` alone; likewise.
        counts: metric name to a number of responses.
        means: metric name to sum and count, of each of several rewards and of what functions log.
        failures: by reward: its calls, how many of them failed, and the first failure.
        clipped: by reward: its calls, how many rewards lay beyond their bounds, and the first of those.
    """

    totals: list[float]
    parts: list[dict[str, float | None]]
    firsts: list[float]
    counts: dict[str, int]
    means: dict[str, tuple[float, int]]
    failures: dict[str, tuple[int, int, str]]
    clipped: dict[str, tuple[int, int, str]]


class RewardSum:
    """All rewards of a run, each with its weight.

    Raises:
        RewardError: a function that cannot be found or loaded.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._labels = [reward_label(name) for name in config.names]
        self._weights = config.weights or [1.0] * len(self._labels)
        self._scorers: list[Scorer] = []
        try:
            for name in config.names:
                self._scorers.append(build_scorer(config, name))
        except BaseException:
            self.close()
            raise

    def score(self, responses: Sequence[Response]) -> BatchRewards:
        """What each response earns, in their order."""
        scores = [scorer.score(responses) for scorer in self._scorers]
        columns = [[math.nan if grade.score is None else grade.score for grade in one.grades] for one in scores]
        counts, means = Counter[str](), {}
        parts: list[dict[str, float | None]] = [{} for _ in responses]
        for label, column, one in zip(self._labels, columns, scores, strict=True):
            counts.update(one.counts)
            several = len(scores) > 1
            if several:
                means[f"reward/{label}"] = _sum_and_count(column)
            for part, grade in zip(parts, one.grades, strict=True):
                part |= {label: grade.score} if several else {}
                part |= {f"{label}/{name}" if several else name: value for name, value in grade.others.items()}
            for name in {name for grade in one.grades for name in grade.others}:
                key = f"reward/{label}/{name}" if several else f"reward/{name}"
                means[key] = _sum_and_count([grade.others.get(name, math.nan) for grade in one.grades])
        totals = [self._total(row) for row in zip(*columns, strict=True)]
        return BatchRewards(
            totals=totals,
            parts=parts,
            firsts=columns[0],
            counts={**counts, **_no_opinion(counts, totals)},
            means=means,
            failures={
                label: (len(responses), one.failed, one.first_failure)
                for label, one in zip(self._labels, scores, strict=True)
                if one.first_failure
            },
            clipped={
                label: (len(responses), one.clipped, one.first_clipped)
                for label, one in zip(self._labels, scores, strict=True)
                if one.clipped
            },
        )

    def close(self) -> None:
        """Ends all processes."""
        for scorer in self._scorers:
            scorer.close()

    def _total(self, row: Sequence[float]) -> float:
        """Rewards without an opinion add nothing; without any there is no total."""
        given = [weight * reward for weight, reward in zip(self._weights, row, strict=True) if not math.isnan(reward)]
        return math.fsum(given) if given else math.nan


def reward_label(name: str) -> str:
    """What a reward is called in metrics: "math", or the name of its function."""
    return name.rpartition(":")[2]


def _no_opinion(counts: Mapping[str, int], totals: Sequence[float]) -> dict[str, int]:
    """Rows that no reward has an opinion on, where there are functions that may have none."""
    return {"reward/no_opinion": sum(map(math.isnan, totals))} if "reward/no_opinion" in counts else {}


def _sum_and_count(values: Sequence[float]) -> tuple[float, int]:
    given = [value for value in values if not math.isnan(value)]
    return math.fsum(given), len(given)
