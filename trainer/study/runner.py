"""Does the runs of a study that are not done yet, side by side as far as the cluster's resources allow."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock

from cfpo_hybrid.single_controller.ray_group import copies_that_fit
from trainer.launch.live_engines import EngineIdentity, hybrid_pool
from trainer.launch.ray_cluster import ray_cluster
from trainer.session import resolve_device
from trainer.study.display import StudyDisplay
from trainer.study.lane import Lane
from trainer.study.plan import PlannedRun


class RunQueue:
    """Runs that are still to do; lanes take from it.

    Args:
        runs: in the order in which they are done.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs, self._lock = list(runs), Lock()

    def take(self, identity: EngineIdentity | None) -> PlannedRun | None:
        """The first run whose engines are these, or else the first of all; None when all are taken."""
        with self._lock:
            fitting = [run for run in self._runs if EngineIdentity.of(run.config) == identity]
            run = next(iter(fitting or self._runs), None)
            if run is not None:
                self._runs.remove(run)
            return run


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
        return _in_lanes(RunQueue(runs), max(1, min(wanted, fitting)), display)


def _in_lanes(queue: RunQueue, count: int, display: StudyDisplay) -> list[str]:
    """Lanes are threads: each waits for its own workers, which are processes."""
    preparing, stopping = Lock(), Event()
    lanes = [Lane(display, preparing, stopping) for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        try:
            working = [threads.submit(_work_off, lane, queue, stopping) for lane in lanes]
            wait(working, return_when=FIRST_EXCEPTION)
            return [name for lane in working for name in lane.result()]
        finally:
            stopping.set()
            for lane in lanes:
                lane.close()


def _work_off(lane: Lane, queue: RunQueue, stopping: Event) -> list[str]:
    failed = []
    with lane:
        while not stopping.is_set() and (run := queue.take(lane.identity)) is not None:
            if lane.run(run).error is not None:
                failed.append(run.name)
    return failed
