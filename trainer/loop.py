"""The one training loop: validate, step, record, save, until the last step; then plots, export and the summary."""

import logging
from contextlib import ExitStack

from trainer.checkpoint import CheckpointStore, load_state
from trainer.config import Config
from trainer.config.load import resolved
from trainer.data import TrainPrompts, load_validation, open_tokenizer
from trainer.plots import plot_run
from trainer.pressure import pressure_line
from trainer.progress import RunProgress
from trainer.run_dir import RunDirectory
from trainer.session import open_session
from trainer.summary import print_summary
from trainer.tracking import open_trackers
from trainer.trainer_state import check_resumable

logger = logging.getLogger(__name__)

MAY_DIFFER = (
    "trainer.resume",
    "trainer.total_steps",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.val_every",
    "trainer.trackers",
    "trainer.progress",
    "trainer.generations_every",
    "trainer.ray_address",
)
"""Settings that may change when a run directory is used again."""


def train(config: Config) -> None:
    """Trains as configured, from the start or from the last checkpoint, and leaves a complete run directory.

    Raises:
        UserError: files, data or a checkpoint that cannot be used.
        WorkerError: a worker raised or died; everything saved so far stays.
    """
    run = RunDirectory(config.trainer.run_dir)
    store = CheckpointStore(run.checkpoints, keep=config.trainer.keep_checkpoints)
    checkpoint = store.resolve(config.trainer.resume)
    state = load_state(checkpoint) if checkpoint else None
    settings = resolved(config)
    if state is not None:
        check_resumable(state, settings)
    tokenizer = open_tokenizer(config.model)
    prompts = TrainPrompts(config, tokenizer)
    validation = load_validation(config, tokenizer)
    run.start(settings, resumed_step=state.step if state else None, may_differ=MAY_DIFFER)
    with ExitStack() as stack:
        progress = stack.enter_context(RunProgress(config.trainer.total_steps, first_step=state.step if state else 0))
        progress.note(pressure_line(config))
        progress.stage("start")
        session = stack.enter_context(open_session(config, prompts))
        trackers = open_trackers(config.trainer.trackers, run, first_step=state.step if state else 0)
        stack.callback(trackers.close)
        loop = TrainingLoop(session, run, store, trackers, progress, validation)
        loop.run(first_step=state.step if state else 0, checkpoint=str(checkpoint) if checkpoint else None)
    plot_run(run.path)
    print_summary(progress.console, run, next_commands(config))
