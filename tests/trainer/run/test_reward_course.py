"""The collapse rule against simulated policies: how seldom it errs, what it finds, and one verdict at every door."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from simulated_rewards import alike, heavy, independent, normal, plus_minus, rise_and_fall, simulate, skewed, verdicts
from study_report_world import plan_runs, write_run

from trainer.run.collapse_watch import CollapseWatch
from trainer.run.directory import RunDirectory
from trainer.run.files import read_jsonl, write_jsonl
from trainer.run.reward_course import SHORTEST, RewardCourse
from trainer.study.study import read_study
from trainer.study_report.table import StudyTable
from trainer.terminal.summary import print_summary
from workers.config import WatchConfig


def alarmed(lines) -> bool:
    """Whether any look in the course of the run finds a collapse."""
    course = RewardCourse(lines)
    return any(course.look(count) for count in range(SHORTEST, len(course.rewards) + 1))


def without(name, lines):
    return [{key: value for key, value in line.items() if key != name} for line in lines]


CONSTANT = {
    "mean 0.05": (0.05, verdicts, {}),
    "mean 0.1": (0.1, verdicts, {}),
    "mean 0.2": (0.2, verdicts, {}),
    "mean 0.5": (0.5, verdicts, {}),
    "-1 or 1": (0.0, plus_minus, {}),
}
OTHERS = {
    "always 0": (0.0, independent, {}),
    "equally hard": (0.05, independent, {}),
    "responses alike": (0.05, alike, {}),
    "two prompts": (0.3, verdicts, {"prompts": 2}),
    "one prompt": (0.3, verdicts, {"prompts": 1}),
    "large batch": (0.5, verdicts, {"prompts": 128, "responses": 8}),
    "normal": (0.0, normal, {}),
    "infinite variance": (0.0, heavy, {"prompts": 4}),
    "penalties": (0.0, skewed, {"prompts": 8}),
    "gaps": (0.2, verdicts, {"gaps": 0.3}),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_at_most_one_constant_policy_in_a_hundred_is_called_collapsed(case: str):
    mean, draw, options = CONSTANT[case]
    random = np.random.default_rng(1)
    assert sum(alarmed(simulate(random, [mean] * 32, draw, **options)) for _ in range(300)) <= 3


@pytest.mark.parametrize("steps", [SHORTEST, 50])
@pytest.mark.parametrize("case", OTHERS)
def test_nor_are_those_of_other_rewards_and_batches(case: str, steps: int):
    mean, draw, options = OTHERS[case]
    random = np.random.default_rng(2)
    assert sum(alarmed(simulate(random, [mean] * steps, draw, **options)) for _ in range(100)) <= 1


def test_nor_are_runs_that_do_not_know_their_groups():
    random = np.random.default_rng(3)
    runs = [without("reward/stderr", simulate(random, [0.2] * 40, prompts=8)) for _ in range(150)]
    assert sum(map(alarmed, runs)) <= 1


@pytest.mark.parametrize(
    ("steps", "start", "best", "end"), [(32, 0.2, 0.8, 0.5), (64, 0.3, 0.7, 0.5), (32, 0.4, 0.8, 0.1)]
)
def test_a_lost_half_is_found(steps: int, start: float, best: float, end: float):
    random, means = np.random.default_rng(4), rise_and_fall(steps, start, best, end)
    assert sum(RewardCourse(simulate(random, means)).collapse() is not None for _ in range(100)) >= 95


def course(*levels: tuple[float, int], stderr: float | None = 0.02) -> RewardCourse:
    """Rewards that stay at each level for so many steps."""
    means = [mean for mean, steps in levels for _ in range(steps)]
    return RewardCourse(
        {"step": step, "reward/mean": mean, "reward/std": 0.4, "reward/stderr": stderr}
        for step, mean in enumerate(means, 1)
    )


def test_what_a_fall_says():
    fall = course((0.2, 10), (0.8, 20), (0.3, 10)).look()
    assert fall is not None
    assert (fall.start, fall.best, fall.end) == pytest.approx((0.2, 0.8, 0.3))
    assert (fall.step, fall.end_begin, fall.best_steps[0] > 10, fall.best_steps[1] < 31) == (40, 31, True, True)
    assert str(fall).startswith("the mean reward is 0.3 over steps 31 to 40, 0.8 over steps ")
    assert str(fall).endswith("and was 0.2 at the start: at least half of its gain is lost, beyond noise")


def test_a_run_that_falls_below_its_start_has_collapsed():
    assert course((0.5, 15), (0.1, 15)).collapse() is not None


@pytest.mark.parametrize(
    "levels",
    [
        ((0.2, 10), (0.8, 20), (0.65, 20)),  # a quarter of the gain
        ((0.2, 10), (0.8, 20), (0.2, 15), (0.8, 5)),  # it has come back
        ((0.2, 10), (0.8, 30)),
    ],
)
def test_what_is_no_collapse(levels):
    assert course(*levels).collapse() is None


def test_a_second_fall_counts_from_its_own_step():
    found = course((0.2, 10), (0.8, 20), (0.2, 15), (0.8, 10), (0.2, 10)).collapse()
    assert found is not None
    assert 55 < found.step <= 65


def test_a_reward_must_fall_by_more_than_prompts_may_get_harder():
    """The spread is 0.4, so 0.02 is allowed for, however exactly it is known."""
    assert course((0.5, 30), (0.485, 30), stderr=1e-4).collapse() is None
    assert course((0.5, 30), (0.45, 30), stderr=1e-4).collapse() is not None


@pytest.mark.parametrize("steps", [0, 1, 3, SHORTEST - 1])
def test_too_few_steps_give_no_verdict(steps: int):
    short = course((0.9, steps // 2), (0.0, steps - steps // 2), stderr=0.0)
    assert short.too_short
    assert short.collapse() is None


def test_steps_without_a_reward_are_passed_over():
    whole = simulate(np.random.default_rng(5), rise_and_fall(40, 0.2, 0.8, 0.2))
    gaps = [
        part for line in whole for part in (line, {"step": line["step"] + 1000, "reward/mean": math.nan}, {"step": 0})
    ]
    assert RewardCourse(gaps).collapse() == RewardCourse(whole).collapse() is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reward", [1e200, -1e308])
def test_rewards_beyond_all_measure_are_noise(reward: float):
    assert course((0.1, 10), (reward, 1), (0.5, 10), stderr=None).collapse() is None


def test_harder_prompts_of_a_curriculum_are_no_loss():
    levels = [step // 10 for step in range(40)]
    lines = simulate(np.random.default_rng(6), [0.9 - 0.25 * level for level in levels])
    assert alarmed(lines)
    assert not alarmed(
        [lines[0], *({**line, "data/level": level} for line, level in zip(lines[1:], levels, strict=True))]
    )
    # A loss shows again where the prompts are as easy as before.
    back = simulate(np.random.default_rng(6), [0.9] * 10 + [0.6] * 10 + [0.2] * 20)
    easy = [0] * 10 + [1] * 10 + [0] * 20
    assert alarmed([{**line, "data/level": level} for line, level in zip(back[1:], easy, strict=True)])


def test_dynamic_sampling_is_judged_by_all_that_was_drawn():
    lines = simulate(np.random.default_rng(7), rise_and_fall(40, 0.2, 0.8, 0.2))[1:]
    drawn = [{key.replace("reward/", "sampling/reward_"): value for key, value in line.items()} for line in lines]
    kept = [{**line, "reward/mean": 0.5, "reward/std": 0.5, "reward/stderr": 0.01} for line in drawn]
    assert RewardCourse(kept).collapse() == RewardCourse(lines).collapse() is not None
    assert RewardCourse(kept).best == RewardCourse(lines).best


@pytest.mark.parametrize("unknown", ["nothing", "reward/stderr"])
def test_one_verdict_at_every_door(tmp_path: Path, unknown: str):
    """The watch of a live run, that of a resumed one, the summary and the table of a study agree bit for bit."""
    lines = without(unknown, simulate(np.random.default_rng(8), rise_and_fall(40, 0.2, 0.8, 0.3), gaps=0.1))
    live = [{"response_length/mean": 5.0, **_unknown_as_nan(line)} for line in lines]
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.0] * 40)
    write_jsonl(path / "metrics.jsonl", live)
    written = read_jsonl(path / "metrics.jsonl")

    limits = WatchConfig(collapse=True)
    watch, resumed = CollapseWatch(limits), CollapseWatch(limits, written[:36])
    found = [[str(trip) for trip in watch.look(line)] for line in live]
    assert found[36:] == [[str(trip) for trip in resumed.look(line)] for line in live[36:]]
    assert found[20] == []
    assert found[40] != []

    text = io.StringIO()
    print_summary(Console(file=text, width=400), RunDirectory(path))
    assert f"The run has collapsed: {found[40][0].removeprefix('watch.collapse: ')}." in text.getvalue()

    first = next(step for step in range(41) if all(found[step:]))
    (row,) = StudyTable.of(read_study(tmp_path), None).rows
    assert row.collapses == [first]


def _unknown_as_nan(line):
    return {name: math.nan if value is None else value for name, value in line.items()}
