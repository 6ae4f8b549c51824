"""Lines that can be told apart, and ranges of axes that show what moved and nothing else."""

import pytest
from matplotlib.figure import Figure

from trainer.figures.drawing import legend_below, line_look, settle_range, show_percent, style_axes


def look(index: int) -> tuple[str, str, str]:
    found = line_look(index)
    return found["color"], found["linestyle"], found["marker"]


def test_lines_differ_in_colour_and_dashes_and_markers():
    assert len({look(index) for index in range(100)}) == 100
    assert len({look(index)[:2] for index in range(16)}) == 16
    for first in range(16):
        for second in range(first):
            if look(first)[0] == look(second)[0]:
                assert look(first)[1] != look(second)[1]
                assert look(first)[2] != look(second)[2]


def test_long_lines_have_markers_at_different_places():
    places = {line_look(index, 400)["markevery"] for index in range(16)}
    assert len(places) == 16


def settled(values, *, percent: bool = False, **options):
    axes = Figure().subplots()
    style_axes(axes)
    axes.plot(range(len(values)), values)
    if percent:
        show_percent(axes)
    settle_range(axes, **options)
    axes.figure.draw_without_rendering()
    return axes


@pytest.mark.parametrize(
    ("values", "noise"),
    [
        ([0.5] * 5, 0.0),
        ([0.5, 0.5 + 2e-9, 0.5], 0.0),
        ([64.0, 64.00001, 64.0], 0.0),
        ([-3.0, -3.0 - 1e-7], 0.0),
        ([2e-9, -2e-9, 1e-9], 1e-6),
        ([0.0, 0.0], 0.0),
        ([0.3], 0.0),
    ],
)
def test_rounding_is_drawn_flat_and_ticks_say_the_values_themselves(values, noise):
    axes = settled(values, noise=noise)
    low, high = axes.get_ylim()
    assert (max(values) - min(values)) / (high - low) < 0.01
    assert low < min(values)
    assert max(values) < high
    assert axes.yaxis.get_major_formatter().get_offset() == ""


def test_what_moves_fills_the_axes():
    low, high = settled([-2.0, -1.99, -1.98]).get_ylim()
    assert high - low < 0.03
    small = settled([1e-3, 1.0001e-3], noise=1e-8)
    assert "+" not in small.yaxis.get_major_formatter().get_offset()


def test_percentages_near_each_other_have_different_labels():
    axes = settled([0.99990, 0.99995], percent=True)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels)


def test_axes_that_are_logarithmic_take_zeros():
    axes = settled([0.0, 1.0, 1.0, 1.0, 1000.0], wide=True)
    assert axes.get_yscale() == "symlog"
    assert -0.01 < axes.get_ylim()[0] < 0
    assert settled([0.0, 1.0, 2.0, 3.0], wide=True).get_yscale() == "linear"
    assert settled([0.0, 0.0], wide=True).get_yscale() == "linear"


def test_axes_without_a_finite_value_say_so():
    axes = settled([float("nan"), float("inf")], wide=True)
    assert [text.get_text() for text in axes.texts] == ["no finite value"]


def test_a_legend_stays_within_its_figure():
    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    lines = [figure.subplots().plot([0], [0])[0] for _ in range(16)]
    legend_below(figure, lines, [f"policy_gradient {number}" for number in range(16)], columns=6)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
