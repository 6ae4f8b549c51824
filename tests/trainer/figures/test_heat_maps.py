"""Heat maps: which value stands where, and none for a run of one optimizer step a rollout."""

import math

from trainer.figures.heat_maps import draw_heat_maps, matrix_of


def update(step, iteration, mini_batch, **metrics):
    return {"step": step, "iteration": iteration, "mini_batch": mini_batch, **metrics}


UPDATES = [
    update(4, 0, 0, a=1.0),
    update(4, 1, 1, a=4.0),
    update(4, 0, 1, a=2.0),
    update(4, 1, 0, a=None),
    update(6, 0, 0, a=5.0),
]


def test_rows_are_updates_and_columns_steps():
    matrix, places, steps = matrix_of(UPDATES, "a")
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert steps == [4, 5, 6]
    found = [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]
    assert found == [[1.0, None, 5.0], [2.0, None, None], [None] * 3, [4.0, None, None]]


def test_a_panel_for_each_metric_that_was_measured():
    lines = [update(1, 0, index, **{"actor/ess": 0.5, "actor/kl_k3": None, "other": 1.0}) for index in (0, 1)]
    figure = draw_heat_maps(lines, title="run")
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.images] == ["effective sample size, share"]
    assert draw_heat_maps([update(1, 0, index, other=1.0) for index in (0, 1)], title="run") is None


def test_one_update_a_rollout_has_no_map():
    assert draw_heat_maps([update(step, 0, 0, **{"actor/ess": 0.5}) for step in (1, 2)], title="run") is None


def test_rounding_has_one_colour():
    values = {
        "actor/kl_k3": (1e-9, 2e-9),
        "actor/entropy": (0.5, 0.5 + 1e-9),
        "actor/tv": (0.0, 0.0),
        "actor/ess": (None, None),
    }
    lines = [update(1, 0, index, **{name: pair[index] for name, pair in values.items()}) for index in (0, 1)]
    figure = draw_heat_maps([*lines, update(2, 0, 0, **{"actor/ess": 0.9})], title="run")
    for axes in figure.axes:
        for image in axes.images:
            low, high = image.get_clim()
            known = image.get_array().compressed()
            assert (known.max() - known.min()) / (high - low) < 0.01
