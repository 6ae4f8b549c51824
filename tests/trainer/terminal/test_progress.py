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
    with RunProgress(4, console=console, clock=clock) as progress:
        progress.step(0, {"val/accuracy": 0.315, "val/reward": 0.315})
        clock.now += 10.0
        progress.stage("generate")
        progress.step(
            1,
            {
                "reward/mean": 0.25,
                "actor/clip_fraction": 0.0123,
                "response_length/mean": 61.25,
                "perf/tokens_per_second": 12345.6,
            },
        )
        progress.note("saved checkpoints/step_000001 [bold]")
    assert text.getvalue().splitlines() == [
        "step 0/4  accuracy 31.5%",
        "step 1/4  reward 0.250  clipped 1.23%  length 61.2  tokens/s 12,346  0:00:30 left",
        "saved checkpoints/step_000001 [bold]",
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


def test_the_time_left_follows_the_last_steps():
    console, _ = plain_console()
    clock = Clock()
    progress = RunProgress(100, console=console, clock=clock)
    clock.now += 60.0  # loading does not count
    progress.step(0, {})
    assert progress.seconds_left(0) is None
    for step in range(1, 31):
        clock.now += 50.0 if step <= 10 else 2.0
        progress.step(step, {})
    assert progress.seconds_left(30) == pytest.approx(70 * 2.0)


def test_a_resumed_run_counts_only_its_own_steps():
    console, text = plain_console()
    clock = Clock()
    progress = RunProgress(12, first_step=10, console=console, clock=clock)
    clock.now += 5.0
    progress.step(11, {"reward/mean": math.nan})
    assert text.getvalue() == "step 11/12  reward nan  0:00:05 left\n"


def test_on_a_terminal_the_bar_shows_reward_accuracy_and_time_left():
    text = io.StringIO()
    clock = Clock()
    with RunProgress(4, console=Console(file=text, force_terminal=True, width=100), clock=clock) as progress:
        progress.step(0, {"val/accuracy": 0.315})
        progress.stage("update")
        clock.now += 10.0
        progress.step(1, {"reward/mean": 0.25})
    shown = text.getvalue()
    for part in ("1/4", "reward 0.250", "accuracy 31.5%", "0:00:30 left", "update"):
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
