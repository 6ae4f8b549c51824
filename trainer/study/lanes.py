"""Does the runs of a study that are not done yet, in lanes side by side as far as the cluster's resources allow."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from threading import Event, Lock

from cfpo_hybrid.errors import CfpoError, WatchStop
from cfpo_hybrid.single_controller.ray_group import copies_that_fit
from trainer.config import Config
from trainer.launch.live_engines import EngineIdentity, LiveEngines, hybrid_pool, open_engines
from trainer.launch.ray_cluster import ray_cluster
from trainer.session import resolve_device
from trainer.study.display import RunView, StudyDisplay
from trainer.study.plan import Attempt, PlannedRun
from trainer.train import finished_line, prepare_run, run_in

logger = logging.getLogger(__name__)


def do_runs(runs: Sequence[PlannedRun], parallel: int, display: StudyDisplay) -> list[str]:
    """Does the runs and records each.

    Args:
        runs: to do; at least one.
        parallel: most of them side by side.
        display: is told of every run.

    Returns:
        The names of those that failed.
    """
    largest = max((run.config for run in runs), key=lambda config: config.trainer.world_size)
    wanted = min(parallel, len(runs))
    with ray_cluster(largest.trainer, resolve_device(largest.trainer.device), side_by_side=wanted):
        fitting = copies_that_fit(hybrid_pool(largest))
        if fitting < wanted:
            display.note(f"the cluster has room for {fitting} of the {wanted} runs that may go on side by side")
        return do_in_lanes(runs, max(1, min(wanted, fitting)), display)


def do_in_lanes(runs: Sequence[PlannedRun], count: int, display: StudyDisplay) -> list[str]:
    """Does the runs in this many lanes: threads, since each waits for its own workers, which are processes.

    Returns:
        The names of those that failed.
    """
    work = Work(runs, display)
    lanes = [Lane(work) for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        try:
            working = [threads.submit(lane.work_off) for lane in lanes]
            wait(working, return_when=FIRST_EXCEPTION)
            return [name for lane in working for name in lane.result()]
        finally:
            work.stopping.set()
            for lane in lanes:
                lane.close()


class Work:
    """What the lanes of a study have in common: the runs that are still to do, their display, and the end of it all.

    Args:
        runs: in the order in which they are done.
        display: is told of every run.
    """

    def __init__(self, runs: Sequence[PlannedRun], display: StudyDisplay) -> None:
        self.display = display
        self.preparing = Lock()
        """Held while a run reads its data: that is work of the driver, of which lanes have one in common."""
        self.stopping = Event()
        """Set when the study is to end; a run that is under way ends as soon as it can."""
        self._runs, self._taking = list(runs), Lock()

    def take(self, identity: EngineIdentity | None) -> PlannedRun | None:
        """The first run whose engines are these, or else the first of all; None when all are taken."""
        with self._taking:
            fitting = [run for run in self._runs if EngineIdentity.of(run.config) == identity]
            run = next(iter(fitting or self._runs), None)
            if run is not None:
                self._runs.remove(run)
            return run


class Lane:
    """A place where runs are done one after the other, in engines that stay up as long as the next run can use them.

    Args:
        work: of all lanes.
    """

    def __init__(self, work: Work) -> None:
        self._work, self._display = work, work.display
        self._engines: LiveEngines | None = None
        self._life = ExitStack()

    @property
    def identity(self) -> EngineIdentity | None:
        """Of the engines that are up."""
        return self._engines.identity if self._engines else None

    def work_off(self) -> list[str]:
        """Does runs until there are no more, then stops the engines; returns the names of those that failed."""
        failed = []
        with closing(self):
            while not self._work.stopping.is_set() and (run := self._work.take(self.identity)) is not None:
                if self.run(run).error is not None:
                    failed.append(run.name)
        return failed

    def run(self, run: PlannedRun) -> Attempt:
        """Does a run and records what came of it; whatever ends a run leaves the lane ready for the next.

        A run that its own watch stops is done: to try it again would take it beyond the limit that it declared.
        """
        view, error, stopped, reused = self._display.begin(run), None, None, False
        begin = time.monotonic()
        try:
            with self._work.preparing:
                finished = finished_line(run.config)  # and only its record is missing
                prepared = None if finished else prepare_run(run.config)
            if prepared is not None:
                reused = self.identity == EngineIdentity.of(run.config)
                run_in(self._engines_for(run.config, view), prepared, view)
        except WatchStop as stop:
            stopped = str(stop)
        except Exception as failure:  # the study goes on with the other runs, whatever this one failed of
            self.close()
            logger.info("%s failed", run.name, exc_info=True)
            error = str(failure) if isinstance(failure, CfpoError) else f"{type(failure).__name__}: {failure}"
        attempt = Attempt(
            seconds=time.monotonic() - begin,
            start_seconds=view.start_seconds,
            reused_engines=reused,
            error=error,
            stopped=stopped,
        )
        if error is None or not self._work.stopping.is_set():  # what the end of the study cut short has not failed
            run.record(attempt)
            self._display.end(run, view, attempt)
        return attempt

    def close(self) -> None:
        """Stops the engines; harmless when repeated."""
        self._engines = None
        self._life.close()

    def _engines_for(self, config: Config, view: RunView) -> LiveEngines:
        if self._engines is None or self._engines.identity != EngineIdentity.of(config):
            self.close()
            self._engines = self._life.enter_context(open_engines(config, view.waits_for))
        if self._work.stopping.is_set():
            raise InterruptedError("the study is ending")
        return self._engines
