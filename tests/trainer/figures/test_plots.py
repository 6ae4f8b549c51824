"""Plots: a PNG for each thing that was measured, none for what was not, a clear error where there is no run."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfpo_hybrid.errors import DataError, UserError
from trainer.figures.plots import CurvePlot, draw_curves, plot_run
from trainer.run.directory import RunDirectory
from trainer.run.files import write_jsonl

PNG = b"\x89PNG\r\n\x1a\n"


def full_run(path) -> RunDirectory:
    run = RunDirectory(path)
    run.start({})
    actor = {
        "actor/clip_fraction": 0.01,
        "actor/clip_fraction_positive": 0.02,
        "actor/clip_fraction_negative": None,
        "actor/entropy": 0.5,
        "actor/kl_k1": 0.001,
        "actor/kl_k3": None,
    }
    times = {"time/generate": 2.0, "time/update": 3.0, "time/step": 6.0}
    steps = [
        {"step": step, "reward/mean": 0.1 * step, "response_length/mean": 60.0, **actor, **times} for step in (1, 2, 3)
    ]
    write_jsonl(run.metrics_file, [{"step": 0, "val/accuracy": 0.3}, *steps])
    places = [{"iteration": iteration, "mini_batch": mini_batch} for iteration in (0, 1) for mini_batch in (0, 1)]
    write_jsonl(run.updates_file, [{"step": step, **place, **actor} for step in (1, 2, 3) for place in places])
    return run


def test_a_full_run_gives_every_plot(tmp_path):
    files = plot_run(full_run(tmp_path).path)
    assert [file.stem for file in files] == [
        "overview",
        "reward",
        "val_accuracy",
        "clip_fraction",
        "entropy",
        "kl",
        "response_length",
        "time",
        "heat_maps",
    ]
    assert all(file.read_bytes().startswith(PNG) for file in files)
    assert {file.parent for file in files} == {tmp_path / "plots"}


def test_missing_metrics_leave_their_plots_out(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    write_jsonl(run.metrics_file, [{"step": 1, "reward/mean": 0.5}])
    write_jsonl(run.updates_file, [{"step": 1, "actor/entropy": 0.5}, {"step": 1, "actor/entropy": None}])
    assert [file.stem for file in plot_run(tmp_path)] == ["overview", "reward", "entropy"]


def test_validation_is_drawn_as_a_line_a_set_and_as_the_reward_where_that_is_no_verdict(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    sets = {f"val/set{number}/reward": -1.0 for number in range(9)}  # more than there are colours
    write_jsonl(run.metrics_file, [{"step": 0, "val/reward": -2.0, **sets, "val/overlong": 0.0}])
    assert [file.stem for file in plot_run(tmp_path)] == ["overview", "val_reward"]
    axes = Figure().subplots()
    curves = {name: name for name in ("val/reward", *sets)}
    draw_curves(axes, CurvePlot("a", "A", "", curves), run.metrics(), [])
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 10


def test_times_of_a_single_step(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    write_jsonl(run.metrics_file, [{"step": 1, "time/generate": 1.0, "time/step": 2.0}])
    assert [file.stem for file in plot_run(tmp_path)] == ["overview", "time"]


def test_more_stages_than_colours(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    times = {f"time/stage_{index}": float(index) for index in range(12)}
    write_jsonl(run.metrics_file, [{"step": step, **times} for step in (1, 2)])
    assert plot_run(tmp_path)[-1].stem == "time"


@pytest.mark.parametrize("empty", [False, True])
def test_where_there_is_no_run_the_user_is_told(tmp_path, empty):
    if empty:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match="no metric to plot" if empty else "is no run directory") as caught:
        plot_run(tmp_path)
    assert isinstance(caught.value, UserError)
    assert not (tmp_path / "plots").exists()


def drawn(metrics, updates, **options) -> Axes:
    axes = Figure().subplots()
    draw_curves(axes, CurvePlot("a", "A", "", {"a": "a"}, **options), metrics, updates)
    return axes


def test_what_only_the_updates_say_is_their_mean_by_step_within_their_range():
    updates = [{"step": 1, "a": 1.0}, {"step": 2, "a": None}, {"step": 2, "a": 3.0}, {"step": 2, "a": 4.0}]
    axes = drawn([], updates)
    assert axes.get_lines()[0].get_xydata().tolist() == [[1.0, 1.0], [2.0, 3.5]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} == {(1.0, 1.0), (2.0, 3.0), (2.0, 4.0)}
    assert drawn([{"step": 1, "a": 7.0}], updates).get_lines()[0].get_xydata().tolist() == [[1.0, 7.0]]


def test_a_long_smooth_curve_is_a_centred_running_mean_over_the_raw_one():
    values = [0.0, 3.0, 6.0] + [0.0] * 37  # 40 steps: a mean over one on either side
    raw, smooth = drawn([{"step": step, "a": value} for step, value in enumerate(values)], [], smooth=True).get_lines()
    assert list(raw.get_ydata()) == values
    assert list(smooth.get_ydata())[:5] == [1.5, 3.0, 3.0, 2.0, 0.0]
    assert len(drawn([{"step": step, "a": 1.0} for step in range(39)], [], smooth=True).get_lines()) == 1
