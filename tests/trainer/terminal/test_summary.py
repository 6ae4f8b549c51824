"""The final summary: gains, pace and time by stage from the run's own log, also after a resume."""

import io

import pytest
from rich.console import Console

from trainer.run.directory import RunDirectory
from trainer.run.files import write_jsonl
from trainer.terminal.summary import print_summary, summarise

LINES = [
    {"step": 0, "val/accuracy": 0.31, "time/validate": 2.0, "time/step": 2.0},
    {"step": 1, "reward/mean": 0.4, "perf/tokens_per_second": 100.0, "time/generate": 3.0, "time/step": 5.0},
    {"step": 2, "reward/mean": None, "perf/tokens_per_second": 300.0, "time/generate": 4.0, "time/step": 15.0},
    {"step": 3, "reward/mean": 0.7, "val/accuracy": 0.62, "time/validate": 2.0, "time/step": 3.0},
]


def test_the_summary_adds_up():
    summary = summarise(LINES)
    assert summary.steps == 3
    assert summary.validations == {"val/accuracy": (0.31, 0.62)}
    assert summary.reward == (0.4, 0.7)
    # 100 x 5 + 300 x 15 = 5000 tokens in 20 s
    assert summary.tokens_per_second == pytest.approx(250.0)
    assert summary.seconds == 25.0
    # 25 - 7 - 4 = 14 s in no stage
    assert list(summary.stage_seconds.items()) == [("other", 14.0), ("generate", 7.0), ("validate", 4.0)]


def test_the_pace_leaves_validation_out():
    lines = [
        {"step": 1, "perf/tokens_per_second": 100.0, "time/step": 5.0},
        {"step": 2, "perf/tokens_per_second": 300.0, "time/step": 30.0, "time/validation": 15.0},
    ]
    assert summarise(lines).tokens_per_second == pytest.approx(250.0)


def test_a_run_without_steps_has_an_empty_summary():
    summary = summarise([])
    assert (summary.steps, summary.validations, summary.reward, summary.tokens_per_second) == (0, {}, None, None)


def test_the_tables_name_what_exists_and_paths_stay_whole(tmp_path):
    run = RunDirectory(tmp_path / ("a_rather_long_name_" * 5))
    run.start({})
    write_jsonl(run.metrics_file, LINES)
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    text = io.StringIO()
    print_summary(Console(file=text, width=70), run, ["cfpo eval " + str(run.export)])
    shown = text.getvalue()
    for part in ("31.0%", "62.0%", "+31.0 points", "250", "generate", "28%"):
        assert part in shown
    for path in (run.metrics_file, run.export):
        assert str(path) in shown
    assert f"cfpo eval {run.export}" in shown
    assert str(run.plots) not in shown  # nothing in it


def test_a_reward_that_is_no_verdict_is_shown_as_a_reward(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.start({})
    write_jsonl(
        run.metrics_file, [{"step": 0, "val/reward": -2.3}, {"step": 1, "reward/mean": -2.0, "val/reward": -1.5}]
    )
    text = io.StringIO()
    print_summary(Console(file=text, width=90), run)
    for part in ("validation reward", "-2.300", "-1.500", "+0.800", "training reward"):
        assert part in text.getvalue()
    assert "accuracy" not in text.getvalue()
    assert "%" not in text.getvalue()


def test_every_validation_set_has_a_row(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.start({})
    before = {"step": 0, "val/math/accuracy": 0.2, "val/accuracy": 0.4}
    write_jsonl(run.metrics_file, [before, {"step": 1, "val/math/accuracy": 0.3, "val/accuracy": 0.6}])
    text = io.StringIO()
    print_summary(Console(file=text, width=90), run)
    lines = text.getvalue().splitlines()
    of_all, of_math = (
        next(line for line in lines if label in line) for label in ("validation accuracy ", "accuracy, math")
    )
    assert "+20.0 points" in of_all
    assert "+10.0 points" in of_math
