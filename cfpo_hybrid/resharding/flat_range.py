"""A stretch of a flattened tensor as rectangles of that tensor. Pure.

The distributed optimizer shares a parameter out by its flattened elements, wherever its rows begin. Of a ``[4, 3]``
parameter the elements 2 to 10 are the rest of row 0, rows 1 and 2, and the beginning of row 3.
"""

import math

from cfpo_hybrid.resharding.shard_spec import Rectangle


def range_rectangles(shape: tuple[int, ...], first: int, stop: int) -> list[Rectangle]:
    """The rectangles whose elements, one rectangle after the other, are ``[first, stop)`` of the flattened tensor.

    Args:
        shape: of the tensor, at least one axis.
        first: index of the first element.
        stop: index after the last one.
    """
    if first >= stop:
        return []
    if len(shape) == 1:
        return [Rectangle((first,), (stop - first,))]
    inner = shape[1:]
    row_volume = math.prod(inner)
    top, left = divmod(first, row_volume)
    bottom, right = divmod(stop, row_volume)
    if top == bottom:
        return _in_row(top, range_rectangles(inner, left, right))
    parts: list[Rectangle] = []
    if left:
        parts += _in_row(top, range_rectangles(inner, left, row_volume))
        top += 1
    if top < bottom:
        parts.append(Rectangle((top,) + (0,) * len(inner), (bottom - top, *inner)))
    return parts + _in_row(bottom, range_rectangles(inner, 0, right))


def _in_row(row: int, parts: list[Rectangle]) -> list[Rectangle]:
    return [Rectangle((row, *part.start), (1, *part.size)) for part in parts]
