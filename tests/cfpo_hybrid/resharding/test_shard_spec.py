"""Boxes of tensors as sets of their cells, stretches of flattened tensors, and shards that tile what they should."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding import Piece, Rectangle, ShardSpec
from cfpo_hybrid.resharding.shard_spec import check_complete, range_rectangles


@st.composite
def boxes(draw, axes: int = 2):
    starts = tuple(draw(st.integers(0, 6)) for _ in range(axes))
    return Rectangle(starts, tuple(draw(st.integers(1, 6)) for _ in range(axes)))


def cells(box: Rectangle) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(axis.start, axis.stop) for axis in box.slices)))


@given(boxes(), boxes())
def test_intersection_and_difference_are_those_of_sets(first, second):
    common = first.intersect(second)
    assert (cells(common) if common else set()) == cells(first) & cells(second)
    rest = first.minus(second)
    assert sum(box.volume for box in rest) == len(cells(first) - cells(second))  # so they are disjoint
    assert set().union(*map(cells, rest)) == cells(first) - cells(second)


@given(boxes(), st.lists(boxes(), max_size=4))
def test_several_are_taken_away_one_after_the_other(box, others):
    rest = box.minus(*others)
    left = cells(box).difference(*map(cells, others))
    assert sum(part.volume for part in rest) == len(left)
    assert set().union(*map(cells, rest)) == left


@given(boxes(axes=1), boxes(axes=1))
def test_the_same_on_vectors(first, second):
    assert set().union(*map(cells, first.minus(second))) == cells(first) - cells(second)


def test_a_part_is_found_in_the_local_frame():
    piece = Piece("w", Rectangle((10, 4), (5, 3)), (2, 0))
    # Row 12 of the tensor is the third row of the piece, which begins at local row 2.
    assert Rectangle((12, 5), (2, 1)).moved(piece.hf.start, piece.local_start) == Rectangle((4, 1), (2, 1))


def test_a_range_by_hand():
    # Of a [4, 3] tensor the elements 2..9: the last of row 0, rows 1 and 2, the first of row 3.
    assert range_rectangles((4, 3), 2, 10) == [
        Rectangle((0, 2), (1, 1)),
        Rectangle((1, 0), (2, 3)),
        Rectangle((3, 0), (1, 1)),
    ]
    assert range_rectangles((4, 3), 4, 5) == [Rectangle((1, 1), (1, 1))]
    assert range_rectangles((4, 3), 0, 12) == [Rectangle.whole((4, 3))]
    assert range_rectangles((5,), 1, 4) == [Rectangle((1,), (3,))]
    assert range_rectangles((4, 3), 5, 5) == []


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_the_rectangles_are_the_range_in_order(shape: list[int], data: st.DataObject):
    volume = math.prod(shape)
    first = data.draw(st.integers(0, volume))
    stop = data.draw(st.integers(first, volume))
    tensor = torch.arange(volume).view(shape)
    parts = [tensor[area.slices].flatten() for area in range_rectangles(tuple(shape), first, stop)]
    assert torch.cat([torch.empty(0, dtype=torch.int64), *parts]).tolist() == list(range(first, stop))


def spec(*areas: tuple[int, int], padding: tuple[Rectangle, ...] = ()) -> ShardSpec:
    pieces = tuple(Piece("w", Rectangle((start,), (count,)), (start,)) for start, count in areas)
    return ShardSpec("p", (6,), pieces, padding)


def test_a_spec_without_holes_or_overlaps_is_taken():
    spec((0, 4), padding=(Rectangle((4,), (2,)),))


@pytest.mark.parametrize(
    ("areas", "message"),
    [
        (((0, 2), (3, 3)), r"\[2:3\].*not covered"),
        (((0, 4), (3, 3)), r"\[3:6\].*covered twice"),
        (((0, 7),), r"\[0:7\].*outside"),
    ],
)
def test_a_spec_with_a_hole_or_an_overlap_raises(areas, message):
    with pytest.raises(ReshardError, match=message):
        spec(*areas)


def test_a_checkpoint_that_is_not_held_in_full_raises():
    held = [spec((0, 6))]
    check_complete(held, {"w": (6,)})
    with pytest.raises(ReshardError, match=r"w: rectangle \[6:8\]"):
        check_complete(held, {"w": (8,)})
    with pytest.raises(ReshardError, match="u: rectangle"):
        check_complete(held, {"w": (6,), "u": (1,)})
    with pytest.raises(ReshardError, match="does not have"):
        check_complete(held, {})
