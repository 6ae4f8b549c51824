"""The proofs that shards tile what they should."""

import pytest

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding import Piece, Rectangle, ShardSpec
from cfpo_hybrid.resharding.shard_spec import check_complete


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
