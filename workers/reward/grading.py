"""What goes to a grader and what comes back: records shared by the scorers and the pool."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Arguments = tuple[object, ...]
"""JSON values for one call of a grader."""


class Status(Enum):
    """How the scoring of one answer ended."""

    SCORED = "scored"
    TIMEOUT = "timeout"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The score of one answer; 0 unless it was scored.

    Args:
        score: the reward.
        status: how the scoring ended.
        detail: what went wrong, for people.

    Example: ``Outcome(1.0)``, ``Outcome(0.0, Status.TIMEOUT, "no verdict after 5 s")``
    """

    score: float
    status: Status = Status.SCORED
    detail: str = ""


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
    """Outcomes of a batch, a row each, and counts of what it took.

    Args:
        outcomes: one a response.
        counts: metric name to a number of responses.
    """

    outcomes: list[Outcome]
    counts: dict[str, int]
