"""A pool of grader processes: calls in, outcomes out, whatever the graders do.

A call that takes too long costs its process, which is killed and replaced while the others go on. A process that
dies of something else is replaced too, and its call is tried once more. Nothing is ever scored 0 in silence: an outcome
tells when it is not a verdict, and processes that cannot be started raise.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait

from cfpo_hybrid.errors import RewardError
from workers.reward.grader_main import Reply
from workers.reward.grader_process import GraderProcess, State
from workers.reward.grading import Arguments, Outcome, Status

logger = logging.getLogger(__name__)

MAX_TRIES = 2
"""Processes that one call may take down before it counts as failed."""
MAX_FAILED_STARTS = 3
"""Processes in succession that may die while starting before the pool gives up."""


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
        self._processes: list[GraderProcess] = []
        self._working_on: dict[GraderProcess, int] = {}
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

    def run(self, calls: Sequence[Arguments]) -> list[Outcome]:
        """Scores all calls and gives their outcomes in the same order.

        Raises:
            RewardError: the grader cannot be loaded, or the pool was closed; the pool is closed afterwards.
        """
        batch = _Calls(calls)
        self._serve(batch, until_ready=False)
        return batch.outcomes()

    def close(self) -> None:
        """Kills all processes; safe to call twice."""
        self._closed = True
        for process in self._processes:
            process.end()
        self._processes.clear()
        self._working_on.clear()

    # --- private

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
        return any(process.state is State.STARTING for process in self._processes)

    def _start_one(self) -> None:
        self._processes.append(GraderProcess(self._grader_name, self._timeout_seconds))

    def _replace(self, process: GraderProcess) -> str:
        self._processes.remove(process)
        self._working_on.pop(process, None)
        how = process.end()
        self._start_one()
        return how

    def _hand_out(self, batch: "_Calls") -> None:
        for process in list(self._processes):
            if process.state is State.IDLE and batch.waiting:
                index = batch.waiting.popleft()
                try:
                    process.send(batch.calls[index])
                    self._working_on[process] = index
                except OSError:
                    # Killed while it had nothing to do: no fault of this call.
                    batch.waiting.appendleft(index)
                    how = self._replace(process)
                    logger.warning("a reward process ended with %s while idle; replaced", how)

    def _collect(self, batch: "_Calls") -> None:
        now = time.monotonic()
        nearest = min(process.deadline for process in self._processes)
        by_descriptor = {process.fileno(): process for process in self._processes}
        for descriptor in wait(list(by_descriptor), None if nearest == math.inf else max(0.0, nearest - now)):
            assert isinstance(descriptor, int)
            self._receive(by_descriptor[descriptor], batch)
        now = time.monotonic()
        for process in list(self._processes):
            if process.deadline <= now:
                self._give_up(process, batch)

    def _receive(self, process: GraderProcess, batch: "_Calls") -> None:
        was_starting = process.state is State.STARTING
        try:
            reply = process.receive()
        except OSError:
            self._bury(process, batch)
            return
        if reply is None:
            return
        if was_starting:
            self._welcome(reply)
        else:
            batch.settle(self._working_on.pop(process), _outcome(reply))
            if reply.is_last:
                self._replace(process)

    def _welcome(self, reply: Reply) -> None:
        if reply.error:
            raise RewardError(f"the reward function {self._grader_name} cannot be loaded: {reply.error}")
        self._failed_starts = 0

    def _bury(self, process: GraderProcess, batch: "_Calls") -> None:
        """A process died by itself or by someone's hand."""
        state, index = process.state, self._working_on.get(process)
        how = self._replace(process)
        logger.warning("a reward process ended with %s while %s; replaced", how, state.value)
        if state is State.STARTING:
            self._count_failed_start(how)
        elif index is not None:
            batch.retry(index, how)

    def _give_up(self, process: GraderProcess, batch: "_Calls") -> None:
        """A process passed its deadline."""
        state, index = process.state, self._working_on.get(process)
        self._replace(process)
        if state is State.STARTING:
            self._count_failed_start("no sign of life")
        elif index is not None:
            batch.settle(index, Outcome(0.0, Status.TIMEOUT, f"no verdict after {self._timeout_seconds:g} s"))

    def _count_failed_start(self, how: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RewardError(
                f"{self._failed_starts} reward processes in succession died while starting, the last with {how}; "
                f"the grader is {self._grader_name}; its messages are in this process's standard error"
            )


class _Calls:
    """The calls of one batch: which wait, and what became of the others."""

    def __init__(self, calls: Sequence[Arguments]) -> None:
        self.calls = calls
        self.waiting = deque(range(len(calls)))
        self._settled: dict[int, Outcome] = {}
        self._tries = [0] * len(calls)

    @property
    def finished(self) -> bool:
        return len(self._settled) == len(self.calls)

    def settle(self, index: int, outcome: Outcome) -> None:
        self._settled[index] = outcome

    def retry(self, index: int, how: str) -> None:
        self._tries[index] += 1
        if self._tries[index] < MAX_TRIES:
            self.waiting.append(index)
        else:
            self.settle(index, Outcome(0.0, Status.FAILED, f"{MAX_TRIES} reward processes ended on it, with {how}"))

    def outcomes(self) -> list[Outcome]:
        return [self._settled[index] for index in range(len(self.calls))]


def _outcome(reply: Reply) -> Outcome:
    return Outcome(0.0, Status.FAILED, reply.error) if reply.error else Outcome(reply.score)
