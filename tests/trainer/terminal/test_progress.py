"""Progress: one plain line a step off a terminal, a bar on one, and the time left."""

import io
import math

import pytest
from rich.console import Console

from trainer.terminal.progress import RunProgress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=60), text


def test_off_a_terminal_each_step_is_one_unwrapped_line():
    console, text = plain_console()
    clock = Clock()
    with RunProgress(5, console=console, clock=clock) as progress:
        progress.waits_for("1 more node of 8 CPU, 8 GPU or above; there are 1: 8 CPU, 8 GPU")
        progress.step(0, {"val/accuracy": 0.315, "val/reward": 0.315})
        clock.now += 100.0
        progress.step(1, {"reward/mean": math.nan})
        clock.now += 10.0
        progress.stage("generate")
        progress.step(
            2,
            {
                "reward/mean": 0.25,
                "actor/clip_fraction": 0.0123,
                "response_length/mean": 61.25,
                "perf/tokens_per_second": 12345.6,
            },
        )
        progress.note("saved checkpoints/step_000002 [bold]")
    assert text.getvalue().splitlines() == [
        "waits for 1 more node of 8 CPU, 8 GPU or above; there are 1: 8 CPU, 8 GPU",
        "step 0/5  accuracy 31.5%",
        "step 1/5  reward nan",
        "step 2/5  reward 0.250  clipped 1.23%  length 61.2  tokens/s 12,346  0:00:30 left",
        "saved checkpoints/step_000002 [bold]",
    ]


def test_a_reward_that_is_no_verdict_is_shown_as_a_reward():
    console, text = plain_console()
    with RunProgress(1, console=console) as progress:
        progress.step(0, {"val/reward": -2.3})
    assert text.getvalue().splitlines() == ["step 0/1  validation reward -2.300"]


def test_every_validation_set_is_shown_by_its_name():
    console, text = plain_console()
    with RunProgress(1, console=console) as progress:
        progress.step(
            0, {"val/math/accuracy": 0.2, "val/math/reward": 0.2, "val/accuracy": 0.4, "val/gsm8k/accuracy": 0.6}
        )
        progress.step(
            0, {"val/reward": -1.0, "val/a/reward": -2.0, "val/a/source/x/reward": 0.0, "val/reward/accuracy": 1.0}
        )
    assert text.getvalue().splitlines() == [
        "step 0/1  accuracy 40.0%  math accuracy 20.0%  gsm8k accuracy 60.0%",
        "step 0/1  validation reward -1.000  a validation reward -2.000",
    ]


def walk(progress: RunProgress, clock: Clock, steps: range, *, plain: float, **costs: float) -> list[float | None]:
    """What is foreseen after each step; every fifth one validates, what a step saves is charged to the next one."""
    foreseen = []
    for step in steps:
        metrics = {
            f"time/{stage}": cost for stage, cost in costs.items() if (step if stage != "save" else step - 1) % 5 == 0
        }
        clock.now += plain + sum(metrics.values())
        progress.step(step, metrics)
        foreseen.append(progress.seconds_left(step))
    return foreseen


def test_the_time_left_follows_the_last_steps_and_not_the_start_or_the_first_one():
    console, _ = plain_console()
    clock = Clock()
    progress = RunProgress(100, console=console, clock=clock)
    clock.now += 60.0  # loading
    progress.step(0, {})
    assert progress.seconds_left(0) is None
    assert walk(progress, clock, range(1, 2), plain=500.0) == [None]  # compiles
    assert walk(progress, clock, range(2, 4), plain=50.0) == [98 * 50.0, 97 * 50.0]
    assert walk(progress, clock, range(4, 31), plain=2.0)[-1] == pytest.approx(70 * 2.0)


def test_a_resumed_run_counts_only_its_own_steps():
    console, _ = plain_console()
    clock = Clock()
    progress = RunProgress(20, first_step=10, console=console, clock=clock)
    clock.now += 300.0  # loading
    assert walk(progress, clock, range(11, 12), plain=40.0) == [None]
    assert walk(progress, clock, range(12, 21), plain=5.0) == [*(5.0 * left for left in range(8, 0, -1)), None]


def test_validations_and_checkpoints_to_come_are_counted_each():
    """Of 23 steps the 5th, 10th, 15th, 20th and the last validate and are saved."""
    console, _ = plain_console()
    clock = Clock()
    recurring = {"validation": 5, "save": 5}
    progress = RunProgress(23, recurring=recurring, console=console, clock=clock)
    progress.step(0, {"time/validation": 30.0})
    foreseen = walk(progress, clock, range(1, 6), plain=2.0, validation=30.0)
    assert foreseen[1] == 21 * 2.0 + 5 * 30.0  # what a checkpoint takes is not known before the first one
    foreseen += walk(progress, clock, range(6, 15), plain=2.0, validation=30.0, save=7.0)
    assert foreseen[5] == 17 * 2.0 + 4 * 30.0 + 4 * 7.0
    assert foreseen[13] == 9 * 2.0 + 3 * 30.0 + 3 * 7.0


def test_what_only_comes_after_the_last_step_is_counted_once():
    console, _ = plain_console()
    clock = Clock()
    progress = RunProgress(10, recurring={"validation": 0}, console=console, clock=clock)
    progress.step(0, {"time/validation": 30.0})
    assert walk(progress, clock, range(1, 4), plain=2.0)[-1] == 7 * 2.0 + 30.0


def test_on_a_terminal_the_bar_shows_reward_accuracy_and_time_left():
    text = io.StringIO()
    clock = Clock()
    with RunProgress(5, console=Console(file=text, force_terminal=True, width=100), clock=clock) as progress:
        progress.waits_for("Ray to start on this machine")
        progress.step(0, {"val/accuracy": 0.315})
        progress.step(1, {"reward/mean": 0.125})
        progress.stage("update")
        clock.now += 10.0
        progress.step(2, {"reward/mean": 0.25})
    shown = text.getvalue()
    for part in (
        "waits for Ray to start on this machine",
        "2/5",
        "reward 0.250",
        "accuracy 31.5%",
        "0:00:30 left",
        "update",
    ):
        assert part in shown


def test_durations_read_as_a_clock():
    assert duration(102.4) == "0:01:42"
    assert duration(4000) == "1:06:40"


def test_a_terminal_without_a_bar_gets_lines():
    text = io.StringIO()
    with RunProgress(
        2, console=Console(file=text, force_terminal=True, width=100), bar=False, clock=Clock()
    ) as progress:
        progress.stage("update")
        progress.step(0, {"val/accuracy": 0.315})
    assert text.getvalue() == "step 0/2  accuracy 31.5%\n"
