"""``cfpo study STUDY.yaml key=value ...``: a grid of runs with paired seeds; what is done is skipped."""

from argparse import ArgumentParser, Namespace

from trainer.commands.arguments import Say, add_overrides


def add_arguments(parser: ArgumentParser) -> None:
    """The study file, and settings over its own."""
    parser.add_argument("study", help="a YAML file, e.g. examples/studies/stability.yaml")
    add_overrides(
        parser, "settings of every run, e.g. trainer.total_steps=3, or keys of the study, e.g. study.parallel=1"
    )
    parser.add_argument("--check", action="store_true", help="list the runs; start nothing")


def run(arguments: Namespace, say: Say) -> int:
    """Checks every cell, then does the runs; 1 when any of them failed."""
    from trainer.config.problem import count
    from trainer.study.display import StudyDisplay
    from trainer.study.lanes import do_runs
    from trainer.study.plan import longest_first, new_study, plan_study
    from trainer.study.study import write_study
    from trainer.study.study_file import read_study_file
    from trainer.terminal.words import pressure_line

    file = read_study_file(arguments.study, arguments.overrides)
    runs = plan_study(file)
    to_do = longest_first([one for one in runs if not one.is_done])
    say(f"{count(len(runs), 'run')}, {len(runs) - len(to_do)} of them done: {file.output}")
    if arguments.check:
        for one in runs:
            state, steps = "done" if one.is_done else "to do", one.config.trainer.total_steps
            say(f"{one.name}  {state}  {count(steps, 'rollout step')}; {pressure_line(one.config.plan)}")
        return 0
    write_study(new_study(file, runs))
    failed: list[str] = []
    if to_do:
        with StudyDisplay(runs, to_do) as display:
            failed = do_runs(to_do, file.keys.parallel, display)
    if failed:
        say(
            f"{len(failed)} of {count(len(runs), 'run')} failed, the same command tries them again: {', '.join(failed)}"
        )
    say(f"results: {file.output}; draw them with `cfpo plot {file.output}`")
    return 1 if failed else 0
