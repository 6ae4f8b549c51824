"""The life of one grader process: it loads its grader, says so, then answers calls one by one.

A call is a line of JSON (the arguments), the answer another one. The process ends when its parent closes the socket.
"""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from workers.reward.graders import Grader, is_worn_out, load_grader

START_SECONDS = 120.0
"""Longest time from the start of a process to the end of its imports."""
ORPHAN_SECONDS = 2.0
"""After this much more than its time a process ends itself: the parent that should have killed it is gone."""
DETAIL_CHARS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One line from a grader process.

    Args:
        score: of a call that succeeded.
        error: of a call, or of loading, that failed.
        is_last: the process ends after it.
    """

    score: float = 0.0
    error: str = ""
    is_last: bool = False


def main(descriptor: int, grader_name: str, timeout_seconds: float) -> None:
    """Serves calls until the parent closes its end.

    Args:
        descriptor: the inherited socket.
        grader_name: as ``load_grader`` takes it.
        timeout_seconds: after which the parent kills this process.
    """
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    try:
        with _limited(START_SECONDS):
            grader = load_grader(grader_name)
    except (Exception, SystemExit) as error:
        _send(channel, Reply(error=_describe(error)))
        return
    _send(channel, Reply())
    with channel.makefile("rb") as calls:
        for line in calls:
            with _limited(timeout_seconds):
                reply = _answer(grader, json.loads(line))
            reply = replace(reply, is_last=is_worn_out(grader_name))
            _send(channel, reply)
            if reply.is_last:
                return


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends the process if the block takes longer, by a signal that its code cannot have kept for itself before."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(grader: Grader, arguments: list[object]) -> Reply:
    try:
        return Reply(score=grader(*arguments))
    except (Exception, SystemExit) as error:
        return Reply(error=_describe(error))


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS]


def _send(channel: socket.socket, reply: Reply) -> None:
    channel.sendall(json.dumps(asdict(reply)).encode() + b"\n")
