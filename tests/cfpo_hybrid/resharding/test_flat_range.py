import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from cfpo_hybrid.resharding.flat_range import range_rectangles
from cfpo_hybrid.resharding.shard_spec import Rectangle


def test_by_hand():
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
