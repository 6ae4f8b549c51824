"""The plan of a model between two layouts, wherever their ranks are."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from layout_pairs import layout_pairs, placed_pairs
from resharding_world import small_shape

import cfpo_hybrid
from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.weight_plan import Handover, Placement, rollout_specs, training_specs, weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import build_plan


@given(layout_pairs() | placed_pairs())
@settings(max_examples=20, deadline=None)
def test_the_plan_of_a_handover_is_that_of_all_its_ranks(pair):
    assert [list(specs) for specs in training_specs(pair.handover)] == pair.sources
    assert [list(specs) for specs in rollout_specs(pair.handover)] == pair.destinations
    plan = weight_plan(pair.handover)
    assert plan == build_plan(pair.sources, pair.destinations, pair.handover.ranks_per_node)
    assert plan is weight_plan(replace(pair.handover))  # an equal handover needs no second plan


def test_plans_are_made_without_torch():
    root = Path(cfpo_hybrid.__file__).parent
    files = [*(root / "models").glob("*.py"), *(root / "resharding").glob("*.py")]
    assert {path.name for path in files if re.search(r"^\s*(import|from) torch", path.read_text(), re.M)} == {
        "transfer.py"
    }


def test_the_processes_of_a_placement():
    assert Placement.colocated(2) == Placement(training=(0, 1), rollout=(0, 1))
    assert Placement.separate(4, 2) == Placement(training=(0, 1, 2, 3), rollout=(4, 5))
    assert [Placement.colocated(2).world_size, Placement.separate(4, 2).world_size] == [2, 6]


def test_a_placement_that_is_none_is_refused():
    with pytest.raises(ReshardError, match=r"processes \(0, 0\) are not one for each rank"):
        Placement(training=(0, 0), rollout=(0,))
    with pytest.raises(ReshardError, match="of 2 ranks is placed in 1 processes"):
        Handover(
            shape=small_shape(),
            training=ParallelLayout(tp=2),
            rollout=ParallelLayout(),
            placement=Placement.colocated(1),
            ranks_per_node=1,
        )
