"""A pool of grader processes: calls in, grades out, whatever the graders do.

A call that takes too long costs its process, which is killed and replaced while the others go on. A process that
dies of something else is replaced too, and its call is tried once more. Nothing is ever scored 0 in silence: a grade
tells when it is not a verdict, and processes that cannot be started raise.
"""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.connection import wait
from typing import Any

from cfpo_hybrid.errors import RewardError
from workers.reward.grader import START_SECONDS, Reply

logger = logging.getLogger(__name__)

MAX_TRIES = 2
"""Processes that one call may take down before it counts as failed."""
MAX_SLOW_FIRST_CALLS = 3
"""First calls in succession that may use up their longer limit; then they get no more time than others."""
MAX_FAILED_STARTS = 3
"""Processes in succession that may die while starting before the pool gives up."""

Arguments = tuple[object, ...]
"""Values for one call of a grader. What JSON has no word for arrives as the nearest thing that it has."""

# A plain interpreter rather than multiprocessing, which would import the parent's main module, and with it torch.
_BOOTSTRAP = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from workers.reward.grader import serve; serve(**arguments)"
)


class Status(Enum):
    """How the scoring of one answer ended."""

    SCORED = "scored"
    TIMEOUT = "timeout"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Grade:
    """The score of one answer; 0 unless it was scored.

    Args:
        score: the reward; None where the grader has no opinion.
        status: how the scoring ended.
        detail: what went wrong, for people.
        trace: where it went wrong.
        others: further numbers that the grader gave.

    Example: ``Grade(1.0)``, ``Grade(0.0, Status.TIMEOUT, "no verdict after 5 s")``
    """

    score: float | None
    status: Status = Status.SCORED
    detail: str = ""
    trace: str = ""
    others: Mapping[str, float] = field(default_factory=dict)


class GraderPool:
    """Processes that score answers; starts them at once and waits for them when they are needed.

    Args:
        grader_name: ``"math-verify"`` or ``"/path/to/file.py:function"``.
        num_processes: calls that run at one time.
        timeout_seconds: for one call.
        first_timeout_seconds: for the first call of a process; by default the same.
        num_arguments: with which a user's function must be callable; None asks for nothing.
    """

    def __init__(
        self,
        grader_name: str,
        *,
        num_processes: int,
        timeout_seconds: float,
        first_timeout_seconds: float | None = None,
        num_arguments: int | None = None,
    ) -> None:
        self._grader_name = grader_name
        self._limits = _Limits(timeout_seconds, max(first_timeout_seconds or 0.0, timeout_seconds))
        self._num_arguments = num_arguments
        self._slow_first_calls = 0
        self._failed_starts = 0
        self._processes: list[_Process] = []
        self._closed = False
        for _ in range(num_processes):
            self._start_one()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that run now."""
        return [process.pid for process in self._processes]

    def wait_until_ready(self) -> None:
        """Returns when every process has loaded its grader.

        Raises:
            RewardError: the grader cannot be loaded; the pool is closed.
        """
        self._serve(_Calls([]), until_ready=True)

    def run(self, calls: Sequence[Arguments]) -> list[Grade]:
        """Scores all calls and gives their grades in the same order.

        Raises:
            RewardError: the grader cannot be loaded, or the pool was closed; the pool is closed afterwards.
        """
        batch = _Calls(calls)
        self._serve(batch, until_ready=False)
        return batch.grades()

    def close(self) -> None:
        """Kills all processes; safe to call twice."""
        self._closed = True
        for process in self._processes:
            process.end()
        self._processes.clear()

    def _serve(self, batch: "_Calls", *, until_ready: bool) -> None:
        if self._closed:
            raise RewardError("the reward pool is closed; make a new one")
        try:
            while not batch.finished or (until_ready and self._any_starting()):
                self._hand_out(batch)
                self._collect(batch)
        except BaseException:
            # Processes may be in the middle of a call, whose reply nobody will read.
            self.close()
            raise

    def _any_starting(self) -> bool:
        return any(process.state is _State.STARTING for process in self._processes)

    def _start_one(self) -> None:
        limits = self._limits
        if self._slow_first_calls >= MAX_SLOW_FIRST_CALLS:
            limits = _Limits(limits.call, limits.call)
        self._processes.append(_Process(self._grader_name, limits, self._num_arguments))

    def _replace(self, process: "_Process") -> str:
        self._processes.remove(process)
        how = process.end()
        self._start_one()
        return how

    def _hand_out(self, batch: "_Calls") -> None:
        for process in list(self._processes):
            if process.state is _State.IDLE and batch.waiting:
                index = batch.waiting.popleft()
                try:
                    process.send(index, batch.lines[index])
                except OSError:
                    # Killed while it had nothing to do: no fault of this call.
                    batch.waiting.appendleft(index)
                    logger.warning("a reward process ended with %s while idle; replaced", self._replace(process))

    def _collect(self, batch: "_Calls") -> None:
        """Waits for what comes first: a reply, the death of a process, or a deadline."""
        nearest = min(process.deadline for process in self._processes)
        by_descriptor = {process.fileno(): process for process in self._processes}
        seconds = None if nearest == math.inf else max(0.0, nearest - time.monotonic())
        for descriptor in wait(list(by_descriptor), seconds):
            assert isinstance(descriptor, int)
            self._receive(by_descriptor[descriptor], batch)
        now = time.monotonic()
        for process in list(self._processes):
            if process.deadline <= now:
                self._give_up(process, batch)

    def _receive(self, process: "_Process", batch: "_Calls") -> None:
        starting, index, first = process.state is _State.STARTING, process.call, process.calls == 1
        try:
            reply = process.receive()
        except OSError:
            self._bury(process, batch)
            return
        if reply is None:
            return
        if starting and reply.error:
            raise RewardError(f"the reward function {self._grader_name} cannot be loaded: {reply.error}")
        if starting:
            self._failed_starts = 0
        elif index is not None:
            self._slow_first_calls = 0 if first else self._slow_first_calls
            failed = Grade(0.0, Status.FAILED, reply.error, reply.trace)
            batch.settle(index, failed if reply.error else Grade(reply.score, others=reply.details))
        if reply.is_last:
            self._replace(process)

    def _bury(self, process: "_Process", batch: "_Calls") -> None:
        """A process died by itself or by someone's hand."""
        how = self._replace(process)
        logger.warning("a reward process ended with %s while %s; replaced", how, process.state.value)
        if process.state is _State.STARTING:
            self._count_failed_start(how)
        elif process.call is not None:
            batch.retry(process.call, how)

    def _give_up(self, process: "_Process", batch: "_Calls") -> None:
        """A process passed its deadline."""
        self._slow_first_calls += process.calls == 1
        self._replace(process)
        if process.state is _State.STARTING:
            self._count_failed_start("no sign of life")
        elif process.call is not None:
            detail = f"no verdict after {process.limit:g} s"
            batch.settle(process.call, Grade(0.0, Status.TIMEOUT, detail))

    def _count_failed_start(self, how: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RewardError(
                f"{self._failed_starts} reward processes in succession died while starting, the last with {how}; "
                f"the grader is {self._grader_name}; its messages are in this process's standard error"
            )


class _State(Enum):
    """What a grader process is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class _Limits:
    """Seconds for a call, and for the first one of a process."""

    call: float
    first: float


class _Process:
    """A grader process as its parent sees it, in a session of its own so that killing it takes its children along."""

    def __init__(self, grader_name: str, limits: _Limits, num_arguments: int | None) -> None:
        self._limits = limits
        self._socket, child = socket.socketpair()
        self._socket.settimeout(limits.call)
        self._received = b""
        arguments = {
            "descriptor": child.fileno(),
            "grader_name": grader_name,
            "timeout_seconds": limits.call,
            "first_timeout_seconds": limits.first,
            "num_arguments": num_arguments,
            "path": sys.path,
        }
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[child.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.state = _State.STARTING
        self.call: int | None = None
        """Number of the call that it works on."""
        self.calls = 0
        """Calls that it was sent."""
        self.deadline = time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        """The socket's descriptor, for waiting."""
        return self._socket.fileno()

    @property
    def limit(self) -> float:
        """Seconds for the call that it was sent last."""
        return self._limits.first if self.calls == 1 else self._limits.call

    def send(self, call: int, line: bytes) -> None:
        """Hands out a call to an idle process; OSError when it is dead, or takes nothing in for as long as a call."""
        self._socket.sendall(line)
        self.state, self.call, self.calls = _State.BUSY, call, self.calls + 1
        self.deadline = time.monotonic() + self.limit

    def receive(self) -> Reply | None:
        """A reply, after which the process is idle, or None while a part is missing; OSError when it is dead."""
        arrived = self._socket.recv(65536)
        if not arrived:
            raise ConnectionResetError("the grader process closed its socket")
        self._received += arrived
        if not self._received.endswith(b"\n"):
            return None
        reply = Reply(**json.loads(self._received))
        self._received = b""
        self.state, self.call, self.deadline = _State.IDLE, None, math.inf
        return reply

    def end(self) -> str:
        """Kills the process with all its children and tells how it ended, or that it was killed here."""
        self._socket.close()
        # Until wait() the process's id cannot belong to anyone else, so the kill meets no stranger.
        os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Calls:
    """The calls of one batch: which wait, and what became of the others."""

    def __init__(self, calls: Sequence[Arguments]) -> None:
        self.lines: dict[int, bytes] = {}
        self._num_calls = len(calls)
        self._settled: dict[int, Grade] = {}
        self._tries = [0] * len(calls)
        for index, arguments in enumerate(calls):
            try:
                self.lines[index] = _as_line(arguments)
            except (TypeError, ValueError, RecursionError) as error:
                self.settle(index, Grade(0.0, Status.FAILED, f"the arguments cannot be handed over as JSON: {error}"))
        self.waiting = deque(self.lines)

    @property
    def finished(self) -> bool:
        return len(self._settled) == self._num_calls

    def settle(self, index: int, grade: Grade) -> None:
        self._settled[index] = grade

    def retry(self, index: int, how: str) -> None:
        self._tries[index] += 1
        if self._tries[index] < MAX_TRIES:
            self.waiting.append(index)
        else:
            self.settle(index, Grade(0.0, Status.FAILED, f"{MAX_TRIES} reward processes ended on it, with {how}"))

    def grades(self) -> list[Grade]:
        return [self._settled[index] for index in range(self._num_calls)]


def _as_line(arguments: Arguments) -> bytes:
    return json.dumps(arguments, default=_in_json_words).encode() + b"\n"


def _in_json_words(value: Any) -> object:
    """Arrays and numbers of numpy and torch as lists and numbers, dates in ISO 8601, bytes as text, others by ``str``."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else str(value)
