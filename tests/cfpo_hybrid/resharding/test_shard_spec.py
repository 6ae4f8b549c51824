"""Rectangles, and the proofs that shards tile what they should."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec, check_complete


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


@given(boxes(axes=1), boxes(axes=1))
def test_the_same_on_vectors(first, second):
    assert set().union(*map(cells, first.minus(second))) == cells(first) - cells(second)


def test_a_part_is_found_in_the_local_frame():
    piece = Piece("w", Rectangle((10, 4), (5, 3)), (2, 0))
    # Row 12 of the tensor is the third row of the piece, which begins at local row 2.
    assert Rectangle((12, 5), (2, 1)).moved(piece.hf.start, piece.local_start) == Rectangle((4, 1), (2, 1))


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
