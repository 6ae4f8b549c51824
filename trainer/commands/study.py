"""``cfpo study STUDY.yaml key=value ...``: a grid of runs with paired seeds; what is done is skipped."""

from argparse import Namespace
from collections.abc import Callable

from trainer.study.display import StudyDisplay
from trainer.study.plan import PlannedRun, longest_first, plan_study
from trainer.study.records import is_done, write_study
from trainer.study.runner import do_runs
from trainer.study.study_file import read_study
from trainer.terminal.pressure import pressure_line


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Checks every cell, then does the runs; 1 when any of them failed."""
    study = read_study(arguments.study, arguments.overrides)
    runs = plan_study(study)
    to_do = longest_first([one for one in runs if not is_done(one)])
    write(f"{len(runs)} runs, {len(runs) - len(to_do)} of them done: {study.output}")
    if arguments.check:
        for one in runs:
            write(_line(one))
        return 0
    write_study(study, runs)
    failed: list[str] = []
    if to_do:
        with StudyDisplay(runs, to_do) as display:
            failed = do_runs(to_do, study.keys.parallel, display)
    if failed:
        write(f"{len(failed)} of {len(runs)} runs failed, the same command tries them again: {', '.join(failed)}")
    write(f"results: {study.output}; draw them with `cfpo plot {study.output}`")
    return 1 if failed else 0


def _line(run: PlannedRun) -> str:
    state = "done" if is_done(run) else "to do"
    return f"{run.name}  {state}  {run.config.trainer.total_steps} rollout steps; {pressure_line(run.config.plan)}"
