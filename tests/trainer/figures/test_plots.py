"""Plots: a PNG for each thing that was measured, none for what was not, a clear error where there is no run."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfpo_hybrid.errors import DataError, UserError
from trainer.figures import plots
from trainer.figures.plots import CurvePlot, draw_curves, plot_run, run_title
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


def test_values_that_are_not_finite_leave_gaps():
    lines = [{"step": step, "a": value} for step, value in enumerate([1.0, None, 3.0, float("inf"), 5.0, 6.0])]
    axes = drawn(lines, [])
    values = list(axes.get_lines()[0].get_ydata())
    assert [None if value != value else value for value in values] == [1.0, None, 3.0, None, 5.0, 6.0]
    alone = axes.collections[0].get_offsets().tolist()
    assert alone == [[0.0, 1.0], [2.0, 3.0]]  # no line reaches them


def test_step_0_is_called_the_start():
    axes = drawn([{"step": step, "a": float(step)} for step in (0, 8, 16)], [])
    name = axes.xaxis.get_major_formatter()
    assert [name(place, 0) for place in (-2, 0, 8, 2.5)] == ["", "start", "8", ""]


def test_a_metric_that_never_was_finite_has_its_panel(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    write_jsonl(run.metrics_file, [{"step": step, "actor/entropy": None} for step in (1, 2)])
    assert [file.stem for file in plot_run(tmp_path)] == ["overview", "entropy"]


def test_the_start_is_no_time_of_a_step(tmp_path, monkeypatch):
    titles, tops = [], []

    def keep(figure, file):
        if file.stem == "time":
            titles.append(figure.axes[0].get_title(loc="left"))
            tops.append(figure.axes[0].get_ylim()[1])
        return file

    monkeypatch.setattr(plots, "save_png", keep)
    run = RunDirectory(tmp_path)
    run.start({})
    begin = {"step": 0, "time/start": 300.0, "time/validation": 40.0, "time/step": 341.0}
    steps = [{"step": step, "time/update": 2.0, "time/step": 2.5} for step in (1, 2)]
    resumed = {"step": 3, "time/start": 200.0, "time/update": 2.0, "time/step": 202.5}
    write_jsonl(run.metrics_file, [begin, *steps, resumed])
    plot_run(tmp_path)
    assert tops[0] < 5
    assert titles == ["Time by stage; before the steps: start 500 s, validation 40 s"]


def test_the_title_says_loss_and_settings(tmp_path):
    run = RunDirectory(tmp_path / "first$run")
    run.start(
        {
            "model": {"path": "Qwen/Qwen2.5-1.5B"},
            "policy_loss": {"name": "cfpo", "plugins": [], "epsilon": 0.1},
            "algorithm": {"iterations": 4, "batch_ratio": 2, "weight_lag": 1},
            "actor": {"lr": 3e-6},
        }
    )
    expected = "cfpo epsilon=0.1, iterations 4 x batch ratio 2, largest lag 15, lr 3e-06, Qwen2.5-1.5B"
    assert run_title(run) == f"first$run: {expected}"
    write_jsonl(run.metrics_file, [{"step": 1, "reward/mean": 0.5, "actor/grad_norm": 0.1}])
    assert [file.stem for file in plot_run(run.path)] == ["overview", "reward", "grad_norm"]


def test_the_title_of_a_loss_that_cannot_be_built_has_its_knobs(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.start({"policy_loss": {"name": "gone", "plugins": [], "width": 2}})
    assert run_title(run) == "run: gone width=2"
