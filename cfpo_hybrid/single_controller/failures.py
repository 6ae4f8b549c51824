"""Which failure came first: when one rank dies, its peers fail too, and the user wants to read the cause."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from cfpo_hybrid.errors import WorkerError

_PEER_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "connection refused", "broken pipe")
"""What errors speak of when the fault lies with another rank: torch.distributed's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How one worker failed.

    Args:
        died: the process ended; otherwise the method raised.
        time: seconds since the epoch, by the worker's clock, or the driver's for a death.
        summary: one line.
        cause: the traceback, or how the process ended.
    """

    rank: int
    method: str
    died: bool
    time: float
    summary: str
    cause: str

    @classmethod
    def of_error(cls, rank: int, method: str, error: Exception) -> "Failure":
        """What a method raised, as its worker tells it."""
        summary = traceback.format_exception_only(error)[-1].strip().split("\n")[0]
        cause = "".join(traceback.format_exception(error))
        return cls(rank=rank, method=method, died=False, time=time.time(), summary=summary, cause=cause)

    @property
    def is_consequence(self) -> bool:
        """Looks like the echo of another rank's failure: a collective that lost a peer."""
        return not self.died and any(mark in self.summary.lower() for mark in _PEER_LOST)


def root_failure(failures: Sequence[Failure]) -> Failure:
    """The failure that explains the others: deaths, then errors that are no echo of a lost peer, then the earliest."""
    return min(failures, key=lambda failure: (not failure.died, failure.is_consequence, failure.time))


def worker_error(role: str, failures: Sequence[Failure], running: Sequence[int]) -> WorkerError:
    """The error for the driver: the root failure in full, the others in a line each.

    Args:
        role: name of the group.
        failures: at least one.
        running: ranks that had not answered and were stopped.
    """
    root = root_failure(failures)
    others = [f"  rank {other.rank} in {other.method}: {other.summary}" for other in failures if other != root]
    lines = [root.cause.rstrip()]
    if others:
        lines += ["", "other workers failed after it:", *others]
    if running:
        lines += ["", f"stopped while still running: ranks {', '.join(map(str, running))}"]
    return WorkerError(role, root.rank, root.method, "\n".join(lines))
