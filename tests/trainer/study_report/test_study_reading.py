"""Study directories read back: records by rollout step, gaps, mistakes; and what each axis becomes."""

import json
from pathlib import Path

import pytest
from study_report_world import ITERATIONS, LOSS, RATIO, plan_runs, two_losses, write_run

from cfpo_hybrid.errors import ConfigError, DataError
from trainer.jsonl import write_jsonl
from trainer.study.cells import cell_label, value_label
from trainer.study.study import OPTIMIZER_STEPS, read_study
from trainer.study_report.figures import Arrangement
from trainer.study_report.statistics import Band, CurveSettings, seed_curve


def test_records_join_both_logs(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5, 0.6], updates=3)
    (run,) = read_study(tmp_path).runs
    assert run.values("reward/mean") == {1: 0.5, 2: 0.6}
    assert run.values("val/accuracy") == {0: 0.25, 2: 0.6}
    assert run.values("actor/kl_k3") == pytest.approx({1: 0.1, 2: 0.1})  # the mean of 0, 0.1 and 0.2
    assert run.values(OPTIMIZER_STEPS) == {0: 0.0, 1: 3.0, 2: 6.0}
    assert run.finished


def test_a_step_s_own_line_goes_before_its_updates(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5])
    write_jsonl(path / "metrics.jsonl", [{"step": 1, "actor/kl_k3": 7.0, "actor/entropy": None}])
    (run,) = read_study(tmp_path).runs
    assert run.values("actor/kl_k3") == {1: 7.0}
    assert run.values("actor/entropy") == {}


def test_gaps_name_every_run_that_lacks_steps(tmp_path: Path):
    two_losses(tmp_path)
    assert read_study(tmp_path).gaps() == ["cfpo-4-seed1: ends at step 3 of 6", "cfpo-4-seed2: not started"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"axes": {}}', "'runs' is None"),
        ('{"axes": {"a": 1}, "runs": []}', "the axis 'a' is 1"),
        ('{"axes": {}, "runs": [3]}', "the run 3 is no object"),
        ('{"axes": {"a": [1]}, "runs": [{"name": "x", "cell": {}, "seed": 1, "path": "x"}]}', "has no value for a"),
    ],
)
def test_a_malformed_study_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


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


def test_labels():
    assert cell_label({LOSS: "cfpo", ITERATIONS: 4}) == "cfpo, iterations 4"
    assert value_label("policy_loss.epsilon", 0.1) == "epsilon 0.1"
    assert value_label("policy_loss", {"name": "cfpo", "epsilon": 0.1}) == "cfpo epsilon=0.1"
    assert value_label("algorithm.kl_in_reward", True) == "kl_in_reward true"


def curve_of(tmp_path: Path, settings: CurveSettings, *rewards: list[float]):
    paths = plan_runs(tmp_path, {}, [({}, seed) for seed in range(len(rewards))])
    for seed, (path, values) in enumerate(zip(paths, rewards, strict=True)):
        write_run(path, values, updates=seed + 1)
    return seed_curve(read_study(tmp_path).runs, "reward/mean", settings)


def test_a_line_is_the_mean_of_the_seeds_that_are_there(tmp_path: Path):
    curve = curve_of(tmp_path, CurveSettings(), [1.0, 4.0], [3.0])
    assert curve is not None
    assert (curve.x, curve.mean, curve.low, curve.high) == ([1.0, 2.0], [2.0, 4.0], [1.0, 4.0], [3.0, 4.0])
    assert curve.complete == [True, False]


def test_a_confidence_band_and_optimizer_steps(tmp_path: Path):
    curve = curve_of(tmp_path, CurveSettings(by_optimizer_steps=True, band=Band.CONFIDENCE), [1.0, 4.0], [3.0])
    assert curve is not None
    assert curve.x == [1.5, 2.0]  # one update a step and two; at the second step only the first seed is left
    # s = sqrt(2), so the half width is 12.7062 x sqrt(2) / sqrt(2); a single seed has no width.
    assert (curve.low, curve.high) == (pytest.approx([2 - 12.7062, 4.0]), pytest.approx([2 + 12.7062, 4.0]))


def test_a_metric_that_no_run_has_is_no_line(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5])
    assert seed_curve(read_study(tmp_path).runs, "actor/entropy", CurveSettings()) is None


def test_a_directory_without_study_json(tmp_path: Path):
    (tmp_path / "other.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="is no study directory"):
        read_study(tmp_path)
