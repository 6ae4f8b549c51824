"""``cfpo study STUDY.yaml key=value ...``: a grid of runs with paired seeds; what is done is skipped."""

from argparse import Namespace
from collections.abc import Callable

from trainer.study.display import StudyDisplay
from trainer.study.lanes import do_runs
from trainer.study.plan import PlannedRun, longest_first, new_study, plan_study
from trainer.study.study import write_study
from trainer.study.study_file import read_study_file
from trainer.terminal.pressure import pressure_line


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Checks every cell, then does the runs; 1 when any of them failed."""
    file = read_study_file(arguments.study, arguments.overrides)
    runs = plan_study(file)
    to_do = longest_first([one for one in runs if not one.is_done])
    write(f"{len(runs)} runs, {len(runs) - len(to_do)} of them done: {file.output}")
    if arguments.check:
        for one in runs:
            write(_line(one))
        return 0
    write_study(new_study(file, runs))
    failed: list[str] = []
    if to_do:
        with StudyDisplay(runs, to_do) as display:
            failed = do_runs(to_do, file.keys.parallel, display)
    if failed:
        write(f"{len(failed)} of {len(runs)} runs failed, the same command tries them again: {', '.join(failed)}")
    write(f"results: {file.output}; draw them with `cfpo plot {file.output}`")
    return 1 if failed else 0


def _line(run: PlannedRun) -> str:
    state = "done" if run.is_done else "to do"
    return f"{run.name}  {state}  {run.config.trainer.total_steps} rollout steps; {pressure_line(run.config.plan)}"
