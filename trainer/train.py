"""`cfpo train`: from a checked configuration to a finished run directory."""

from dataclasses import dataclass
from pathlib import Path

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, changed_settings, resolved
from trainer.data import TrainPrompts, ValidationPrompts, load_validation, run_tokenizer
from trainer.figures.generations_page import write_run_page
from trainer.figures.plots import plot_run
from trainer.launch.live_engines import LiveEngines, open_engines
from trainer.loop import TrainingLoop
from trainer.run.checkpoint import CheckpointStore, TrainerState, check_resumable, load_state
from trainer.run.directory import SAME_RUN, RunDirectory, set_aside
from trainer.run.metrics import StageTimer
from trainer.run.reward_failures import RewardFailures
from trainer.session import Session, checkpoint_layout, hybrid_settings
from trainer.terminal.progress import RunProgress, StepProgress
from trainer.terminal.summary import print_summary
from trainer.terminal.words import pressure_line
from trainer.tracking import open_trackers
from workers.hybrid_worker import HybridWorker

NAMED_SETTINGS = 8
"""Changed settings that a resume names; further ones are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run whose data and directory are ready.

    Args:
        config: of the run.
        directory: started, so that its logs end where the run goes on.
        store: of its checkpoints.
        checkpoint: that it goes on from; None for a fresh start.
        state: the driver's part of that.
        prompts: to train on.
        validation: held-out problems; None where there are none.
    """

    config: Config
    directory: RunDirectory
    store: CheckpointStore
    checkpoint: Path | None
    state: TrainerState | None
    prompts: TrainPrompts
    validation: ValidationPrompts | None

    @property
    def first_step(self) -> int:
        """Rollout steps done before."""
        return self.state.step if self.state else 0


def train(config: Config) -> None:
    """Trains as configured, from the start or from a checkpoint, and leaves a complete run directory.

    Raises:
        UserError: data or a checkpoint that cannot be used; nothing has been started.
        WorkerError: a worker raised or died; what was saved before stays.
        WatchStop: a limit whose action is "stop" was crossed; the state after that step is saved.
    """
    run = prepare_run(config)
    trainer = config.trainer
    with RunProgress(trainer.total_steps, first_step=run.first_step, bar=trainer.progress) as progress:
        progress.note(f"{config.policy_loss.name}: {pressure_line(config.plan)}")
        progress.stage("start")
        with open_engines(config) as engines:
            run_in(engines, run, progress)
    plot_run(run.directory.path)
    if run.directory.has_generations:
        write_run_page(run.directory.path)
    print_summary(progress.console, run.directory, _next_commands(run.directory))


def prepare_run(config: Config) -> PreparedRun:
    """Reads the data and makes the run directory ready; starts nothing.

    Raises:
        UserError: data, a directory or a checkpoint that cannot be used.
    """
    run = RunDirectory(config.trainer.run_dir)
    store = CheckpointStore(run.checkpoints, keep=config.trainer.keep_checkpoints)
    checkpoint = store.resolve(config.trainer.resume)
    state = _resumed_state(checkpoint, config) if checkpoint else None
    tokenizer = run_tokenizer(config.model, config.data, config.rollout)
    prompts, validation = TrainPrompts(config, tokenizer), load_validation(config, tokenizer)
    prepared = PreparedRun(
        config=config,
        directory=run,
        store=store,
        checkpoint=checkpoint,
        state=state,
        prompts=prompts,
        validation=validation,
    )
    _open_run_directory(prepared)
    return prepared


def run_in(engines: LiveEngines, run: PreparedRun, progress: StepProgress) -> None:
    """Trains from the first step to the last in live engines, which another run may use after it.

    Raises:
        WorkerError: a worker raised or died; the engines are gone.
    """
    config, state, algorithm = run.config, run.state, run.config.algorithm
    kl_coef = algorithm.kl_coef if state is None or state.kl_coef is None else state.kl_coef
    session = Session(
        config=config,
        actors=engines.actors,
        graders=engines.graders,
        prompts=run.prompts,
        timer=StageTimer(on_enter=progress.stage),
        kl=KlController(coef=kl_coef, target=algorithm.kl_target, horizon=algorithm.kl_horizon),
        prompts_consumed=state.prompts_consumed if state else 0,
        reward_failures=RewardFailures(run.directory.reward_failures, progress.note, config.reward.all_failed_action),
    )
    with open_trackers(run.directory, config.trainer, resumed_step=state.step if state else None) as tracker:
        if state:
            progress.note(resume_line(state, config))
        checkpoint = str(run.checkpoint.absolute()) if run.checkpoint else None
        version = state.policy_version if state else 0
        with session.timed("start"):
            session.actors.run(HybridWorker.begin_run, hybrid_settings(config), checkpoint, version)
            first_sync = session.reshard(probe=True)
        progress.note(f"vLLM and Megatron agree on the probe to {first_sync.probe_difference:.1e} nats")
        loop = TrainingLoop(
            session, run.directory, run.store, tracker=tracker, progress=progress, validation=run.validation
        )
        loop.run_from(run.first_step)


def resume_line(state: TrainerState, config: Config) -> str:
    """Where a run goes on, and with which other settings than its checkpoint was trained with.

    Args:
        state: of the checkpoint.
        config: of the run.
    """
    changed = changed_settings(state.config, resolved(config))
    named = [f"{key}={now!r} (was {was!r})" for key, (was, now) in changed.items() if key not in SAME_RUN]
    further = f" and {len(named) - NAMED_SETTINGS} more" if len(named) > NAMED_SETTINGS else ""
    others = f", from now on with {', '.join(named[:NAMED_SETTINGS])}{further}" if named else ""
    done = "; no step is left, trainer.total_steps asks for as many" if state.step == config.trainer.total_steps else ""
    return f"goes on after step {state.step}, where its checkpoint was saved{others}{done}"


def _resumed_state(checkpoint: Path, config: Config) -> TrainerState:
    state = load_state(checkpoint)
    check_resumable(state, layout=checkpoint_layout(config), config=resolved(config))
    total = config.trainer.total_steps
    if state.step > total:
        raise ConfigError(
            f"trainer.total_steps={total}, but the checkpoint to resume from, {checkpoint}, is one after step {state.step}; "
            f"set total_steps to {state.step} or more, trainer.resume to an earlier checkpoint, or another trainer.run_dir"
        )
    return state


def _open_run_directory(run: PreparedRun) -> None:
    directory, checkpoint, resumed_step = run.directory, run.checkpoint, run.state.step if run.state else None
    # Later checkpoints first: were the logs cut back before and the run killed between, it would resume beyond its logs.
    if checkpoint is not None and checkpoint.absolute().parent == run.store.directory.absolute():
        run.store.set_aside_after(run.first_step)
    directory.start(resolved(run.config), resumed_step=resumed_step, checkpoint=checkpoint)
    if directory.export.is_dir() and run.first_step < run.config.trainer.total_steps:
        set_aside(directory.export)  # of another step than the run is about to come to


def _next_commands(run: RunDirectory) -> list[str]:
    commands = []
    if run.export.is_dir():
        data = run.config().get("data", {})
        sets = [f"{name}={file}" for name, files in data.get("val_sets", {}).items() for file in files]
        files = sets or data.get("val_files") or ["FILE.jsonl"]
        commands.append(f"cfpo eval {run.export} {' '.join(files)} --samples 4")
    commands += [
        f"tensorboard --logdir {run.tensorboard}",
        f"cfpo train {run.config_file} trainer.run_dir=NEW actor.lr=...",
    ]
    return commands
