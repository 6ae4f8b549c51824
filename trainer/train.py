"""`cfpo train`: from a checked configuration to a finished run directory."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, changed_settings, resolved
from trainer.data import TrainPrompts, ValidationPrompts, load_validation, open_tokenizer
from trainer.figures.plots import plot_run
from trainer.launch.live_engines import LiveEngines, open_engines
from trainer.loop import TrainingLoop
from trainer.run.checkpoint import CheckpointStore, load_state
from trainer.run.directory import SAME_RESULTS, RunDirectory, set_aside
from trainer.run.reward_failures import RewardFailures
from trainer.run.trainer_state import TrainerState, check_resumable
from trainer.session import checkpoint_layout, hybrid_settings
from trainer.terminal.pressure import pressure_line
from trainer.terminal.progress import RunProgress, StepProgress
from trainer.terminal.summary import print_summary
from trainer.tracking import open_trackers
from workers.hybrid_worker import HybridWorker

MAY_DIFFER = (*SAME_RESULTS, "trainer.total_steps", "trainer.val_every")
"""Settings that may change when a run directory is used again."""

NAMED_SETTINGS = 8
"""Changed settings that a resume names; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a run goes on from.

    Args:
        checkpoint: its folder; None for a fresh start.
        state: the driver's part of it.
    """

    checkpoint: Path | None = None
    state: TrainerState | None = None

    @property
    def step(self) -> int:
        """Rollout steps done before."""
        return self.state.step if self.state else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run whose data and directory are ready.

    Args:
        config: of the run.
        directory: started, so that its logs end where the run goes on.
        store: of its checkpoints.
        resume: where it goes on from.
        prompts: to train on.
        validation: held-out problems; None where there are none.
    """

    config: Config
    directory: RunDirectory
    store: CheckpointStore
    resume: Resume
    prompts: TrainPrompts
    validation: ValidationPrompts | None


def train(config: Config) -> None:
    """Trains as configured, from the start or from a checkpoint, and leaves a complete run directory.

    Raises:
        UserError: data or a checkpoint that cannot be used; nothing has been started.
        WorkerError: a worker raised or died; what was saved before stays.
        WatchStop: a limit whose action is "stop" was crossed; the state after that step is saved.
    """
    run = prepare_run(config)
    trainer = config.trainer
    with RunProgress(trainer.total_steps, first_step=run.resume.step, bar=trainer.progress) as progress:
        progress.note(f"{config.policy_loss.name}: {pressure_line(config.plan)}")
        progress.stage("start")
        with open_engines(config) as engines:
            run_in(engines, run, progress)
    plot_run(run.directory.path)
    print_summary(progress.console, run.directory, _next_commands(run.directory))


def prepare_run(config: Config) -> PreparedRun:
    """Reads the data and makes the run directory ready; starts nothing.

    Raises:
        UserError: data, a directory or a checkpoint that cannot be used.
    """
    run = RunDirectory(config.trainer.run_dir)
    store = CheckpointStore(run.checkpoints, keep=config.trainer.keep_checkpoints)
    resume = _resume(store, config)
    tokenizer = open_tokenizer(config.model)
    prompts, validation = TrainPrompts(config, tokenizer), load_validation(config, tokenizer)
    _open_run_directory(run, store, resume, config)
    return PreparedRun(config=config, directory=run, store=store, resume=resume, prompts=prompts, validation=validation)


def run_in(engines: LiveEngines, run: PreparedRun, progress: StepProgress) -> None:
    """Trains from the first step to the last in live engines, which another run may use after it.

    Raises:
        WorkerError: a worker raised or died; the engines are gone.
    """
    config, resume = run.config, run.resume
    with ExitStack() as stack:
        session = engines.session(config, run.prompts, on_stage=progress.stage)
        session.reward_failures = RewardFailures(
            run.directory.reward_failures, progress.note, config.reward.all_failed_action
        )
        tracker = open_trackers(
            run.directory,
            config.trainer.trackers,
            resumed_step=resume.state.step if resume.state else None,
            project=config.trainer.project,
        )
        stack.callback(tracker.close)
        if resume.state:
            progress.note(resume_line(resume.state, config))
        session.prompts_consumed = resume.state.prompts_consumed if resume.state else 0
        if resume.state and resume.state.kl_coef is not None:
            session.kl = replace(session.kl, coef=resume.state.kl_coef)
        checkpoint = str(resume.checkpoint.absolute()) if resume.checkpoint else None
        version = resume.state.policy_version if resume.state else 0
        with session.timed("start"):
            session.actors.run(HybridWorker.begin_run, hybrid_settings(config), checkpoint, version)
            first_sync = session.reshard(probe=True)
        progress.note(f"vLLM and Megatron agree on the probe to {first_sync.probe_difference:.1e} nats")
        loop = TrainingLoop(
            session, run.directory, run.store, tracker=tracker, progress=progress, validation=run.validation
        )
        loop.run_from(resume.step)


def resume_line(state: TrainerState, config: Config) -> str:
    """Where a run goes on, and with which other settings than its checkpoint was trained with.

    Args:
        state: of the checkpoint.
        config: of the run.
    """
    changed = changed_settings(state.config, resolved(config))
    named = [f"{key}={now!r} (was {was!r})" for key, (was, now) in changed.items() if key not in MAY_DIFFER]
    further = f" and {len(named) - NAMED_SETTINGS} more" if len(named) > NAMED_SETTINGS else ""
    others = f", from now on with {', '.join(named[:NAMED_SETTINGS])}{further}" if named else ""
    done = "; no step is left, trainer.total_steps asks for as many" if state.step == config.trainer.total_steps else ""
    return f"goes on after step {state.step}, where its checkpoint was saved{others}{done}"


def _resume(store: CheckpointStore, config: Config) -> Resume:
    checkpoint = store.resolve(config.trainer.resume)
    if checkpoint is None:
        return Resume()
    state = load_state(checkpoint)
    check_resumable(state, layout=checkpoint_layout(config), config=resolved(config))
    total = config.trainer.total_steps
    if state.step > total:
        raise ConfigError(
            f"trainer.total_steps={total}, but the checkpoint to resume from, {checkpoint}, is one after step {state.step}; "
            f"set total_steps to {state.step} or more, trainer.resume to an earlier checkpoint, or another trainer.run_dir"
        )
    return Resume(checkpoint, state)


def _open_run_directory(run: RunDirectory, store: CheckpointStore, resume: Resume, config: Config) -> None:
    # Later checkpoints first: were the logs cut back before and the run killed between, it would resume beyond its logs.
    if resume.checkpoint is not None and resume.checkpoint.absolute().parent == store.directory.absolute():
        store.set_aside_after(resume.step)
    resumed_step = resume.state.step if resume.state else None
    run.start(resolved(config), resumed_step=resumed_step, checkpoint=resume.checkpoint, may_differ=MAY_DIFFER)
    if run.export.is_dir() and resume.step < config.trainer.total_steps:
        set_aside(run.export)  # of another step than the run is about to come to


def _next_commands(run: RunDirectory) -> list[str]:
    commands = []
    if run.export.is_dir():
        val_files = run.config().get("data", {}).get("val_files") or ["FILE.jsonl"]
        commands.append(f"cfpo eval {run.export} {val_files[0]} --samples 4")
    commands += [
        f"tensorboard --logdir {run.tensorboard}",
        f"cfpo train {run.config_file} trainer.run_dir=NEW actor.lr=...",
    ]
    return commands
