"""A place where runs are done one after the other, in engines that stay up as long as the next run can use them."""

import logging
from contextlib import ExitStack
from threading import Event, Lock

from cfpo_hybrid.errors import CfpoError, WatchStop
from trainer.config import Config
from trainer.launch.live_engines import EngineIdentity, LiveEngines, open_engines
from trainer.study.display import StudyDisplay
from trainer.study.plan import PlannedRun
from trainer.study.records import Outcome, record
from trainer.train import prepare_run, run_in

logger = logging.getLogger(__name__)


class Lane:
    """Runs of a study, one at a time; a context manager that stops the engines at its end.

    Args:
        display: is told of every run.
        preparing: held while a run reads its data: that is work of the driver, of which lanes have one in common.
        stopping: set when the study is to end; a run that is under way ends as soon as it can.
    """

    def __init__(self, display: StudyDisplay, preparing: Lock, stopping: Event) -> None:
        self._display, self._preparing, self._stopping = display, preparing, stopping
        self._engines: LiveEngines | None = None
        self._life = ExitStack()

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> EngineIdentity | None:
        """Of the engines that are up."""
        return self._engines.identity if self._engines else None

    def run(self, run: PlannedRun) -> Outcome:
        """Does a run and records what came of it; whatever ends a run leaves the lane ready for the next.

        A run that its own watch stops is done: to try it again would take it beyond the limit that it declared.
        """
        view, error, stopped, reused = self._display.begin(run), None, None, False
        begin = self._display.clock()
        try:
            with self._preparing:
                prepared = prepare_run(run.config)
            reused = self.identity == EngineIdentity.of(run.config)
            run_in(self._engines_for(run.config), prepared, view)
        except WatchStop as stop:
            stopped = str(stop)
        except Exception as failure:  # the study goes on with the other runs, whatever this one failed of
            self.close()
            logger.info("%s failed", run.name, exc_info=True)
            error = str(failure) if isinstance(failure, CfpoError) else f"{type(failure).__name__}: {failure}"
        outcome = Outcome(
            seconds=self._display.clock() - begin,
            start_seconds=view.start_seconds,
            reused_engines=reused,
            error=error,
            stopped=stopped,
        )
        if error is None or not self._stopping.is_set():  # what the end of the study cut short has not failed
            record(run, outcome)
            self._display.end(run, view, outcome)
        return outcome

    def close(self) -> None:
        """Stops the engines; harmless when repeated."""
        self._engines = None
        self._life.close()

    def _engines_for(self, config: Config) -> LiveEngines:
        if self._engines is None or self._engines.identity != EngineIdentity.of(config):
            self.close()
            self._engines = self._life.enter_context(open_engines(config))
        if self._stopping.is_set():
            raise InterruptedError("the study is ending")
        return self._engines
