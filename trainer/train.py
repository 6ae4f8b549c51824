"""`cfpo train`: from a checked configuration to a finished run directory."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import model_folder
from trainer.config import Config, TrainerConfig
from trainer.config.paths import recorded
from trainer.data import TrainPrompts, ValidationPrompts, fingerprint, load_validation, run_tokenizer
from trainer.figures.generations_page import write_run_page
from trainer.figures.plots import plot_run
from trainer.launch.live_engines import LiveEngines, open_engines
from trainer.loop import TrainingLoop
from trainer.run.checkpoint import CheckpointStore, TrainerState, load_state
from trainer.run.directory import SAME_RUN, RunDirectory, set_aside
from trainer.run.metrics import StageTimer
from trainer.run.resume import check_inputs, check_resumable, resume_line
from trainer.run.reward_failures import RewardFailures
from trainer.session import Session, checkpoint_layout, hybrid_settings
from trainer.terminal.progress import RunProgress, StepProgress
from trainer.terminal.summary import print_summary
from trainer.terminal.words import count, pressure_line
from trainer.tracking import open_trackers
from workers.hybrid_worker import HybridWorker


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
        inputs: fingerprint of the starting model and the prompts.
    """

    config: Config
    directory: RunDirectory
    store: CheckpointStore
    checkpoint: Path | None
    state: TrainerState | None
    prompts: TrainPrompts
    validation: ValidationPrompts | None
    inputs: dict[str, str]

    @property
    def first_step(self) -> int:
        """Rollout steps done before."""
        return self.state.step if self.state else 0


def train(config: Config) -> None:
    """Trains as configured, from the start or from a checkpoint, and leaves a complete run directory.

    A run that is finished is only said to be so.

    Raises:
        UserError: data or a checkpoint that cannot be used; nothing has been started.
        WorkerError: a worker raised or died; what was saved before stays.
        WatchStop: a limit whose action is "stop" was crossed; the state after that step is saved.
    """
    finished = finished_line(config)
    if finished is not None:
        Console().print(finished, markup=False, highlight=False, soft_wrap=True)
        return
    run = prepare_run(config)
    trainer = config.trainer
    with RunProgress(
        trainer.total_steps,
        first_step=run.first_step,
        recurring=_recurring(trainer, run.validation is not None),
        bar=trainer.progress,
    ) as progress:
        progress.note(f"{config.policy_loss.name}: {pressure_line(config.plan)}")
        progress.stage("start")
        with open_engines(config, progress.waits_for) as engines:
            run_in(engines, run, progress)
    plot_run(run.directory.path)
    if run.directory.has_generations:
        write_run_page(run.directory.path)
    print_summary(progress.console, run.directory, _next_commands(run.directory))


def finished_line(config: Config) -> str | None:
    """What to say of a run that has made all its steps, and what to do then; None where something is left to do.

    Looks at the run directory alone. An export that is asked for and is not there is left to do.

    Raises:
        ConfigError: the run in the directory is finished, but was one of other settings.
    """
    run, total = RunDirectory(config.trainer.run_dir), config.trainer.total_steps
    if config.trainer.resume == "never" or (config.trainer.export_final and not run.export.is_dir()):
        return None
    checkpoint = CheckpointStore(run.checkpoints).resolve(config.trainer.resume)
    if checkpoint is not None and not run.holds(checkpoint):
        return None
    logged = run.metrics()
    made = load_state(checkpoint).step if checkpoint else logged[-1]["step"] if logged else 0
    if made != total or (checkpoint is None and run.last_planned_step != total):
        return None
    changed = run.other_settings(recorded(config), SAME_RUN)
    if changed:
        raise ConfigError(
            f"trainer.run_dir '{run.path}' holds a finished run with other settings (different: {changed}); for a run of "
            f"these settings name another trainer.run_dir"
        )
    more = "to go on, raise trainer.total_steps" if checkpoint else "it kept no checkpoint to go on from"
    return (
        f"the run in {run.path} is finished: all {count(total, 'step')} of it are made, so nothing is started; {more}; for "
        f"a run from the start, name another trainer.run_dir"
    )


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
    inputs = fingerprint(model_folder(config.model.path, config.model.revision), prompts.prompts)
    if state:
        check_inputs(state, inputs, recorded(config))
    prepared = PreparedRun(
        config=config,
        directory=run,
        store=store,
        checkpoint=checkpoint,
        state=state,
        prompts=prompts,
        validation=validation,
        inputs=inputs,
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
        inputs=run.inputs,
    )
    with open_trackers(run.directory, config.trainer, resumed_step=state.step if state else None) as tracker:
        if state:
            progress.note(resume_line(state, recorded(config), run.inputs))
        checkpoint = str(run.checkpoint.absolute()) if run.checkpoint else None
        version = state.policy_version if state else 0
        with session.timed("start"):
            source = f"the checkpoint {checkpoint}" if checkpoint else f"the model '{config.model.path}'"
            progress.waits_for(f"{source} to be loaded into Megatron-core, and vLLM to start")
            session.actors.run(HybridWorker.begin_run, hybrid_settings(config), checkpoint, version)
            progress.waits_for("the first reshard of the weights into vLLM, and its probe")
            first_sync = session.reshard(probe=True)
        progress.note(f"vLLM and Megatron agree on the probe to {first_sync.probe_difference:.1e} nats")
        loop = TrainingLoop(
            session, run.directory, run.store, tracker=tracker, progress=progress, validation=run.validation
        )
        loop.run_from(run.first_step)


def _resumed_state(checkpoint: Path, config: Config) -> TrainerState:
    state = load_state(checkpoint)
    check_resumable(state, layout=checkpoint_layout(config), config=recorded(config))
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
    directory.start(recorded(run.config), resumed_step=resumed_step, checkpoint=checkpoint)
    if directory.export.is_dir() and run.first_step < run.config.trainer.total_steps:
        set_aside(directory.export)  # of another step than the run is about to come to


def _recurring(trainer: TrainerConfig, validates: bool) -> dict[str, int]:
    """The stages that come every so many steps and after the last one; 0 is only after the last."""
    saving = {"save": trainer.save_every} if trainer.save_every else {}
    return saving | ({"validation": trainer.val_every} if validates else {})


def _next_commands(run: RunDirectory) -> list[str]:
    data = run.config().get("data", {})
    problems = "" if data.get("val_sets") or data.get("val_files") else " FILE.jsonl"
    commands = [f"cfpo eval {run.path}{problems}"] if run.export.is_dir() else []
    commands += [
        f"tensorboard --logdir {run.tensorboard}",
        f"cfpo train {run.config_file} trainer.run_dir=NEW actor.lr=...",
    ]
    return commands
