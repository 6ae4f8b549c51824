"""The one training loop: validate, step, record, save, until the last step."""

from cfpo_hybrid.errors import WatchStop
from cfpo_hybrid.protocol import DataProto
from trainer.config import Config
from trainer.config.paths import recorded
from trainer.data import ValidationPrompts
from trainer.evaluation.validation import generation_rows, prompt_texts, validate
from trainer.run.checkpoint import CheckpointStore, TrainerState
from trainer.run.collapse_watch import CollapseWatch
from trainer.run.dead_runs import DeadRuns
from trainer.run.directory import RunDirectory, step_name
from trainer.run.files import read_jsonl, write_jsonl
from trainer.run.interrupt import Interrupt
from trainer.run.metrics import StepReport, batch_to_keep, reshard_metrics, step_metrics, trip_metrics
from trainer.run.model_card import export_texts
from trainer.session import Session, checkpoint_layout, is_due, validation_sampling
from trainer.step import train_step
from trainer.terminal.progress import StepProgress
from trainer.tracking import Tracker
from workers.hybrid_worker import HybridWorker
from workers.messages import Trip
from workers.reward.reward_worker import RewardWorker


class TrainingLoop:
    """Drives a session through its steps and keeps the run directory up to date.

    Step 0 in the logs is the state before training, step k that after k rollout steps.

    Args:
        session: the live workers.
        run: where results go.
        store: where checkpoints go.
        tracker: where metrics go.
        progress: what the user sees.
        validation: held-out problems; None where there are none.
    """

    def __init__(
        self,
        session: Session,
        run: RunDirectory,
        store: CheckpointStore,
        *,
        tracker: Tracker,
        progress: StepProgress,
        validation: ValidationPrompts | None,
    ) -> None:
        self.session, self.run, self.store = session, run, store
        self.tracker, self.progress, self.validation = tracker, progress, validation
        self.config: Config = session.config
        self.watch = CollapseWatch(self.config.watch, run.metrics())
        told = [hint["name"] for hint in read_jsonl(run.hints_file)]
        self.dead_runs = DeadRuns(self.config, run.metrics(), told)
        self._tripped: set[str] = set()

    def run_from(self, first_step: int) -> None:
        """Trains from the state after ``first_step`` steps to the last step, then exports the model.

        Where checkpoints are on, an interrupt ends the run after the step that is under way.

        Raises:
            WatchStop: a limit whose action is "stop" was crossed; the state after that step is saved.
            KeyboardInterrupt: the run was interrupted; so it is.
        """
        trainer = self.config.trainer
        first_reshard = reshard_metrics(self.session.take_reshards())
        if first_step == 0:
            if trainer.val_before_train and self.validation is not None:
                self.progress.waits_for("the validation of the starting model")
            validation = self._validate(0) if trainer.val_before_train else {}
            self._log(0, validation | first_reshard | self.session.timer.collect())
        with Interrupt(on=trainer.save_every > 0) as interrupt:
            for step in range(first_step, trainer.total_steps):
                report = train_step(self.session, step)
                trips = self._record(report)
                stops = [trip for trip in trips if trip.action == "stop"]
                if stops or interrupt.asked or is_due(trainer.save_every, step + 1, last=trainer.total_steps):
                    self._save(step + 1, report.policy_version)
                if stops:
                    raise WatchStop(self._farewell(step + 1, stops))
                if interrupt.asked:
                    self.progress.note(
                        f"interrupted after step {step + 1}, whose state is saved; trainer.resume=auto goes on"
                    )
                    raise KeyboardInterrupt
        if trainer.export_final:
            self.progress.stage("export")
            texts = export_texts(self.config, self.run.metrics())
            self.session.actors.run(HybridWorker.export, str(self.run.export.absolute()), texts)

    def _record(self, report: StepReport) -> list[Trip]:
        """Step 8: updates, metrics, validation and generations of a finished step; returns the limits it crossed."""
        step, trainer = report.step + 1, self.config.trainer
        for update in report.updates:
            self.tracker.log_update(step, update.iteration, update.mini_batch, update.metrics)
        validation = self._validate(step) if step == trainer.total_steps or is_due(trainer.val_every, step) else {}
        if trainer.generations_every and (step in (1, trainer.total_steps) or is_due(trainer.generations_every, step)):
            self._save_generations(step, report.batch)
        metrics = step_metrics(report, self.session.take_reshards(), self.session.timer.collect()) | validation
        trips = [*report.trips, *self.watch.look({"step": step, **metrics})]
        left_out = self.session.plan.optimizer_steps - len(report.updates)
        self._log(step, metrics | trip_metrics(trips, left_out))
        self._tell(step, trips)
        self._hint(step, metrics)
        self._keep_batch(report, trips)
        return trips

    def _tell(self, step: int, trips: list[Trip]) -> None:
        """Shows each limit when it is crossed, and not again as long as it stays so."""
        for trip in trips:
            if trip.limit not in self._tripped:
                self.progress.note(f"step {step}: {trip}")
        self._tripped = {trip.limit for trip in trips}

    def _hint(self, step: int, metrics: dict[str, float]) -> None:
        """Tells of what keeps the run from learning, each once, also over resumes: the run directory remembers it."""
        hints = self.dead_runs.look(metrics)
        for text in hints.values():
            self.progress.note(f"step {step}: {text}")
        if hints:
            told = [{"step": step, "name": name, "hint": text} for name, text in hints.items()]
            write_jsonl(self.run.hints_file, [*read_jsonl(self.run.hints_file), *told])

    def _save_generations(self, step: int, batch: DataProto) -> None:
        graders = self.session.graders
        rows = generation_rows(batch, graders.run(RewardWorker.decode, batch), prompt_texts(batch, graders))
        self.run.write_generations(step, rows, keep=self.config.trainer.keep_generations)

    def _keep_batch(self, report: StepReport, trips: list[Trip]) -> None:
        """Saves the rollout batch where it is due, and where it crossed a limit."""
        step, run = report.step + 1, self.run
        folders = [run.rollouts] if is_due(self.config.trainer.save_rollouts_every, step) else []
        stops = any(trip.action == "stop" for trip in trips)
        if stops or (trips and len(list(run.offending.glob("*.batch"))) < self.config.watch.saved_batches):
            folders.append(run.offending)
        for folder in folders:
            run.write_batch(folder, step, batch_to_keep(report, trips))

    def _farewell(self, step: int, stops: list[Trip]) -> str:
        found = "; ".join(map(str, stops))
        return (
            f"stopped after step {step} of {self.config.trainer.total_steps}, as declared: {found}. The state is saved in "
            f"{self.run.checkpoints / step_name(step)}, the batch in {self.run.offending / step_name(step)}.batch. To go "
            f"on, raise the limit or set its action to 'warn', change what led here (a lower actor.lr, fewer "
            f"algorithm.iterations), and start again with trainer.resume=auto"
        )

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        self.tracker.log_step(step, metrics)
        self.progress.step(step, metrics)

    def _validate(self, step: int) -> dict[str, float]:
        if self.validation is None:
            return {}
        with self.session.timed("validation"), self.session.newest_weights():
            answers = validate(
                self.validation, self.session.actors, self.session.graders, validation_sampling(self.config)
            )
        keep = self.config.trainer.keep_generations
        self.run.write_generations(step, answers.rows(), prefix="val_", keep=keep)
        self.session.reward_failures.look(answers.reward_meta)
        return {f"val/{name}": value for name, value in answers.metrics().items()}

    def _save(self, step: int, policy_version: int) -> None:
        state = TrainerState(
            step=step,
            policy_version=policy_version,
            prompts_consumed=self.session.prompts_consumed,
            seed=self.config.trainer.seed,
            layout=checkpoint_layout(self.config),
            config=recorded(self.config),
            inputs=self.session.inputs,
            kl_coef=self.session.kl.coef if self.session.kl.target is not None else None,
        )
        with self.session.timed("save"), self.store.writing(state) as folder:
            texts = export_texts(self.config, self.run.metrics())
            self.session.actors.run(HybridWorker.save, str(folder.absolute()), texts)
