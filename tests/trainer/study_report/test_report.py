"""The report of made-up studies: tables worked out by hand, figures of every kind, one page that needs nothing else."""

import csv
import io
import re
from pathlib import Path

import pytest
import yaml
from study_report_world import ITERATIONS, LOSS, RATIO, plan_runs, two_losses, write_run

from cfpo_hybrid.errors import ConfigError, DataError
from trainer import cli
from trainer.run.files import write_jsonl
from trainer.study.study import read_study
from trainer.study_report.figures import Arrangement, StudyFigures
from trainer.study_report.report import report_study
from trainer.study_report.statistics import CurveSettings
from trainer.study_report.table import StudyTable


def table_of(folder: Path) -> StudyTable:
    study = read_study(folder)
    return StudyTable.of(study, Arrangement.of(study.axes).series)


def test_the_table_by_hand(tmp_path: Path):
    two_losses(tmp_path)
    rows = {(row.cell[LOSS], row.cell[ITERATIONS]): row for row in table_of(tmp_path).rows}
    clip, cfpo, unfinished = rows["clip", 1], rows["cfpo", 1], rows["cfpo", 4]
    # clip ends at 0.6 and 0.7, cfpo at 0.7 and 0.8: 0.1 apart with every seed, so the paired interval has no width.
    assert clip.intervals["final_reward"].mean == pytest.approx(0.65)
    assert clip.difference is None
    assert cfpo.difference.mean == pytest.approx(0.1)
    assert cfpo.difference.half_width == pytest.approx(0.0, abs=1e-9)
    assert clip.intervals["final_reward"].half_width == pytest.approx(12.7062 * 0.05, rel=1e-3)  # s = 0.1 / sqrt(2)
    assert (unfinished.planned, len(unfinished.outcomes), unfinished.outcomes[0].finished) == (2, 1, False)
    assert unfinished.difference.mean == pytest.approx(0.1)  # seed 1 alone


def test_collapses_are_in_the_table(tmp_path: Path):
    axes = {LOSS: ["clip"]}
    paths = plan_runs(tmp_path, axes, [({LOSS: "clip"}, seed) for seed in (1, 2, 3)])
    write_run(paths[0], [0.2] * 10 + [0.8] * 15 + [0.0] * 15)
    write_run(paths[1], [0.2] * 10 + [0.8] * 30)
    write_run(paths[2], [0.2, 0.8, 0.8], planned=40)
    table = table_of(tmp_path)
    (line,) = csv.DictReader(io.StringIO(table.to_csv()))
    assert table.texts()[0][-2:] == [f"1 of 2 (step {line['collapse_steps']}), 1 too short to say", "-"]
    assert (line["collapsed"], line["too_short_to_say"], line["runs"]) == ("1", "1", "3")
    assert 25 < int(line["collapse_steps"]) <= 32
    assert float(line["best_reward_mean"]) == pytest.approx((0.8 + 0.8 + 0.6) / 3)
    assert float(line["final_reward_mean"]) == pytest.approx((0.0 + 0.8 + 0.6) / 3)


def test_a_study_of_three_steps_is_too_short_to_say(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    write_run(path, [0.9, 0.1, 0.1])
    (texts,) = table_of(tmp_path).texts()
    assert texts[-6:] == ["0.367", "0.367", "0.100", "0.250", "too short to say", "-"]


def test_one_lucky_step_is_not_the_best_reward(tmp_path: Path):
    """The mean of five steps is at most 0.5; that of the first step alone would be 1."""
    (path,) = plan_runs(tmp_path, {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    write_run(path, [1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    (row,) = table_of(tmp_path).rows
    assert row.intervals["best_reward"].mean == pytest.approx(0.5)
    (short,) = plan_runs(tmp_path / "short", {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    write_run(short, [0.2, 0.4])
    (row,) = table_of(tmp_path / "short").rows
    assert row.intervals["best_reward"].mean == pytest.approx(0.3)  # all there is


def test_the_report_of_an_incomplete_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    two_losses(tmp_path)
    assert cli.main(["plot", str(tmp_path), "--series", ITERATIONS, "--band", "ci", "--x", "optimizer"]) == 0
    names = ["report.html", "table.csv", "table.png", "dynamics.png", "objective.png"]
    files = "\n".join(str(tmp_path / "plots" / name) for name in names)
    missing = "missing (2):\n  cfpo-4-seed1: ends at step 3 of 6\n  cfpo-4-seed2: not started"
    assert capsys.readouterr().out == f"{files}\n{missing}\n"
    page = (tmp_path / "plots" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"<script|https?://|<link|src=\"(?!data:)", page)
    assert "cfpo-4-seed2: not started" in page
    assert "Figure 2. Objective and gradient" in page
    assert "has collapsed where its mean reward has lost at least half" in page
    assert "A line for each value of iterations, a column for each value of loss" in page
    assert "dotted where some seeds have ended, and the band is the 95 % confidence interval" in page


def test_a_second_pressure_axis_gives_a_figure_a_value_and_one_a_metric(tmp_path: Path):
    axes = {LOSS: ["clip", "cfpo"], ITERATIONS: [1, 2], RATIO: [1, 8]}
    cells = [
        {LOSS: loss, ITERATIONS: count, RATIO: ratio} for loss in axes[LOSS] for count in (1, 2) for ratio in (1, 8)
    ]
    paths = plan_runs(tmp_path, axes, [(cell, 1) for cell in cells], mode="iso_compute")
    write_run(paths[0], [0.5, 0.6])
    study = read_study(tmp_path)
    settings = CurveSettings(by_optimizer_steps=study.iso_compute)
    figures = StudyFigures(study, Arrangement.of(axes), settings)
    drawn = {picture.name: picture for picture in figures.pictures()}
    # Only batch ratio 1 has a run, so the figure of batch ratio 8 is left out.
    metrics = ["reward_mean", "val_accuracy", "actor_clip_fraction", "actor_kl_k3"]
    assert list(drawn) == ["dynamics-batch_ratio_1", *(f"{metric}-by-batch_ratio" for metric in metrics)]
    rows = drawn["reward_mean-by-batch_ratio"].rows
    assert [[panel.cell for panel in row] for row in rows] == [
        [{RATIO: ratio, ITERATIONS: count} for count in (1, 2)] for ratio in (1, 8)
    ]
    assert "Horizontal axis: optimizer step" in drawn["dynamics-batch_ratio_1"].caption


def test_every_validation_set_has_columns_and_panels(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    write_run(
        path, [0.5, 0.2], validated=["val/accuracy", "val/reward", "val/math_500/accuracy", "val/math_500/reward"]
    )
    table = table_of(tmp_path)
    assert table.header[2:-2] == [
        *("final reward", "best reward", "final validation", "best validation"),
        *("final validation math_500", "best validation math_500"),
    ]
    (line,) = csv.DictReader(io.StringIO(table.to_csv()))
    assert (line["final_validation_math_500_mean"], line["best_validation_math_500_mean"]) == ("0.2", "0.25")
    study = read_study(tmp_path)
    (picture,) = StudyFigures(study, Arrangement.of(study.axes), CurveSettings(by_optimizer_steps=False)).pictures()
    assert picture.row_labels[1:3] == ["validation accuracy", "validation accuracy, math_500"]


def test_a_reward_that_is_no_verdict_stands_for_the_validation(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    write_run(path, [-0.5, -0.2], validated=["val/reward"])
    (row,) = table_of(tmp_path).rows
    assert row.intervals["final_validation"].mean == -0.2
    study = read_study(tmp_path)
    (picture,) = StudyFigures(study, Arrangement.of(study.axes), CurveSettings(by_optimizer_steps=False)).pictures()
    assert picture.row_labels[1] == "validation reward"


def test_a_loss_that_cannot_be_built_leaves_only_its_objective_out(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5], loss="no_such_loss")
    report = report_study(tmp_path)
    assert "objective.png" not in [file.name for file in report.files]
    assert report.missing[0].startswith("objective of no_such_loss: unknown policy loss")


def test_a_study_without_a_step_is_refused(tmp_path: Path):
    plan_runs(tmp_path, {LOSS: ["clip"]}, [({LOSS: "clip"}, 1)])
    with pytest.raises(DataError, match="has a metric yet"):
        report_study(tmp_path)


def test_axes_that_are_not_there_are_mistakes_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    two_losses(tmp_path)
    assert cli.main(["plot", str(tmp_path), "--columns", "no.axis"]) == 2
    assert cli.main(["plot", str(tmp_path / "runs" / "clip-1-seed1"), "--series", LOSS]) == 2
    err = capsys.readouterr().err
    assert "the study has no such axis" in err
    assert "for study directories only" in err


def test_lines_are_losses_and_columns_pressure():
    axes = {RATIO: [1, 4], LOSS: ["clip", "cfpo"], ITERATIONS: [1, 2]}
    assert Arrangement.of(axes) == Arrangement(series=LOSS, columns=ITERATIONS, others=(RATIO,))
    assert Arrangement.of(axes, series=RATIO) == Arrangement(series=RATIO, columns=ITERATIONS, others=(LOSS,))
    assert Arrangement.of(axes, columns=LOSS).series == RATIO
    assert Arrangement.of({"policy_loss.epsilon": [0.1, 0.2]}).series == "policy_loss.epsilon"
    assert Arrangement.of({ITERATIONS: [1, 2]}) == Arrangement(series=ITERATIONS, columns=None, others=())
    advantages = {ITERATIONS: [1, 2], "algorithm.advantage": ["grpo", "rloo"]}
    assert Arrangement.of(advantages).series == "algorithm.advantage"
    assert Arrangement.of({}) == Arrangement(series=None, columns=None, others=())


def test_an_unknown_axis_is_a_mistake():
    with pytest.raises(
        ConfigError, match=r"--series algorithm\.x: the study has no such axis; it has policy_loss\.name"
    ):
        Arrangement.of({LOSS: ["clip"]}, series="algorithm.x")
    with pytest.raises(ConfigError, match="both name"):
        Arrangement.of({LOSS: ["clip"]}, series=LOSS, columns=LOSS)


def test_the_page_says_what_the_runs_were(tmp_path: Path):
    axes = {"actor.lr": [1e-6, 3e-6]}
    paths = plan_runs(tmp_path, axes, [({"actor.lr": rate}, seed) for rate in axes["actor.lr"] for seed in (1, 2)])
    for path, rate in zip(paths, (1e-6, 1e-6, 3e-6, 3e-6), strict=True):
        write_run(path, [0.5])
        settings = {
            "model": {"path": "Qwen/<b>"},
            "data": {"train_files": ["train.jsonl"], "val_files": ["val.jsonl"], "train_batch_size": 128},
            "rollout": {"group_size": 4},
            "algorithm": {"iterations": 2, "batch_ratio": 8, "advantage": "grpo", "loss_aggregation": "token_mean"},
            "actor": {"lr": rate, "optimizer": {"schedule": "cosine", "warmup_ratio": 0.1}},
            "trainer": {"total_steps": 1},
            "policy_loss": {"name": "clip"},
        }
        (path / "config.yaml").write_text(yaml.safe_dump(settings))
        start = {"step": 0, "date": f"2026-01-0{path.name[-1]}T00:00:00+00:00", "command": "cfpo study a.yaml"}
        write_jsonl(path / "starts.jsonl", [start | {"versions": {"torch": "2.1", "ray": f"2.{rate * 1e6:g}"}}])
    report_study(tmp_path)
    page = (tmp_path / "plots" / "report.html").read_text()
    for line in (
        "model: Qwen/&lt;b&gt;",
        "data: train.jsonl; validation val.jsonl",
        "learning rate: 1e-06, cosine, warm-up over 10% of the optimizer steps | 3e-06, cosine, warm-up over 10%",
        "batch: 128 prompts x 4 responses a rollout step, iterations 2 x batch ratio 8",
        "seeds of each cell: 1, 2",
        "versions: torch 2.1, ray 2.1 and 2.3",
        "begun: 2026-01-01T00:00:00+00:00, the last start 2026-01-02T00:00:00+00:00",
        "command: cfpo study a.yaml<",
    ):
        assert line in page
