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
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import wait

from cfpo_hybrid.errors import RewardError
from workers.reward.grader import START_SECONDS, Reply

logger = logging.getLogger(__name__)

MAX_TRIES = 2
"""Processes that one call may take down before it counts as failed."""
MAX_FAILED_STARTS = 3
"""Processes in succession that may die while starting before the pool gives up."""

Arguments = tuple[object, ...]
"""JSON values for one call of a grader."""

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
        score: the reward.
        status: how the scoring ended.
        detail: what went wrong, for people.

    Example: ``Grade(1.0)``, ``Grade(0.0, Status.TIMEOUT, "no verdict after 5 s")``
    """

    score: float
    status: Status = Status.SCORED
    detail: str = ""


class GraderPool:
    """Processes that score answers; starts them at once and waits for them when they are needed.

    Args:
        grader_name: ``"math-verify"`` or ``"/path/to/file.py:function"``.
        num_processes: calls that run at one time.
        timeout_seconds: for one call.
    """

    def __init__(self, grader_name: str, *, num_processes: int, timeout_seconds: float) -> None:
        self._grader_name = grader_name
        self._timeout_seconds = timeout_seconds
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
        self._processes.append(_Process(self._grader_name, self._timeout_seconds))

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
                    process.send(index, batch.calls[index])
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
        starting, index = process.state is _State.STARTING, process.call
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
            batch.settle(index, Grade(0.0, Status.FAILED, reply.error) if reply.error else Grade(reply.score))
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
        self._replace(process)
        if process.state is _State.STARTING:
            self._count_failed_start("no sign of life")
        elif process.call is not None:
            detail = f"no verdict after {self._timeout_seconds:g} s"
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


class _Process:
    """A grader process as its parent sees it, in a session of its own so that killing it takes its children along."""

    def __init__(self, grader_name: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._socket, child = socket.socketpair()
        self._socket.settimeout(timeout_seconds)
        self._received = b""
        arguments = {
            "descriptor": child.fileno(),
            "grader_name": grader_name,
            "timeout_seconds": timeout_seconds,
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
        self.deadline = time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        """The socket's descriptor, for waiting."""
        return self._socket.fileno()

    def send(self, call: int, arguments: Arguments) -> None:
        """Hands out a call to an idle process; OSError when it is dead, or takes nothing in for ``timeout_seconds``."""
        self._socket.sendall(json.dumps(arguments).encode() + b"\n")
        self.state, self.call = _State.BUSY, call
        self.deadline = time.monotonic() + self._timeout_seconds

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
        self.calls = calls
        self.waiting = deque(range(len(calls)))
        self._settled: dict[int, Grade] = {}
        self._tries = [0] * len(calls)

    @property
    def finished(self) -> bool:
        return len(self._settled) == len(self.calls)

    def settle(self, index: int, grade: Grade) -> None:
        self._settled[index] = grade

    def retry(self, index: int, how: str) -> None:
        self._tries[index] += 1
        if self._tries[index] < MAX_TRIES:
            self.waiting.append(index)
        else:
            self.settle(index, Grade(0.0, Status.FAILED, f"{MAX_TRIES} reward processes ended on it, with {how}"))

    def grades(self) -> list[Grade]:
        return [self._settled[index] for index in range(len(self.calls))]
