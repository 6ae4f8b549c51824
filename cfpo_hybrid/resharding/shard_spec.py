"""Rectangles of tensors, and which of which Hugging Face tensors a local parameter holds. Pure: no tensor is touched.

Query-key-value interleaving, gate-up fusion, vocabulary padding and tied embeddings are all just rectangles:

    local parameter  decoder.layers.0.mlp.linear_fc1.weight (tp rank 1 of 2, [8, 4])
        rows 0..4  <- gate_proj.weight rows 4..8
        rows 4..8  <- up_proj.weight   rows 4..8

Both engines describe their ranks so; ``planner.py`` intersects the two descriptions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, sub
from typing import NamedTuple

from cfpo_hybrid.errors import ReshardError


class Rectangle(NamedTuple):
    """A box of a tensor: first index and size along each axis.

    Large models have hundreds of thousands of rectangles, and tuples are made, hashed and compared much faster than
    other records.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Iterable[int]) -> "Rectangle":
        """All of a tensor."""
        size = tuple(shape)
        return cls((0,) * len(size), size)

    @property
    def volume(self) -> int:
        """Number of elements."""
        return math.prod(self.size)

    @property
    def stop(self) -> tuple[int, ...]:
        """First index after it along each axis."""
        return tuple(map(add, self.start, self.size))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Indexes a tensor."""
        return tuple(map(slice, self.start, self.stop))

    def along(self, axis: int, first: int, count: int) -> "Rectangle":
        """``count`` of its rows, columns, ... from its own ``first`` one on."""
        start, size = list(self.start), list(self.size)
        start[axis] += first
        size[axis] = count
        return Rectangle(tuple(start), tuple(size))

    def intersect(self, other: "Rectangle") -> "Rectangle | None":
        """What both have in common, or None."""
        # `map` of operators takes half the time of a generator.
        start = tuple(map(max, self.start, other.start))
        size = tuple(map(sub, map(min, self.stop, other.stop), start))
        return Rectangle(start, size) if min(size) > 0 else None

    def minus(self, *others: "Rectangle") -> "list[Rectangle]":
        """What is left of this rectangle without the others, as disjoint rectangles."""
        left: list[Rectangle] = [self]
        for other in others:
            left = [rest for box in left for rest in box._minus(other)]
        return left

    def _minus(self, other: "Rectangle") -> "list[Rectangle]":
        common = self.intersect(other)
        if common is None:
            return [self]
        rest, box = [], self
        for axis, (first, count) in enumerate(zip(map(sub, common.start, self.start), common.size, strict=True)):
            after = first + count
            if first:
                rest.append(box.along(axis, 0, first))
            if after < box.size[axis]:
                rest.append(box.along(axis, after, box.size[axis] - after))
            box = box.along(axis, first, count)
        return rest

    def moved(self, origin: tuple[int, ...], target: tuple[int, ...]) -> "Rectangle":
        """The same box in another frame, in which ``origin`` of this frame lies at ``target``."""
        return Rectangle(tuple(map(add, map(sub, self.start, origin), target)), self.size)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


class Region(NamedTuple):
    """A rectangle of a tensor or parameter, with the name of that."""

    name: str
    area: Rectangle

    def along(self, axis: int, first: int, count: int) -> "Region":
        """As :meth:`Rectangle.along`."""
        return Region(self.name, self.area.along(axis, first, count))

    def __str__(self) -> str:
        return f"{self.name}{self.area}"


def tiling_fault(whole: Rectangle, parts: Sequence[Rectangle]) -> tuple[Rectangle | None, Rectangle | None]:
    """What keeps the parts from tiling the whole, so that every element is in exactly one of them.

    Returns:
        A part that overlaps those before it or lies outside, or else a hole; two times None where there is neither.
    """
    if _is_stack(whole, parts):
        return None, None
    left = [whole]
    for part in parts:
        rest = [box for before in left for box in before.minus(part)]
        if sum(box.volume for box in left) - sum(box.volume for box in rest) != part.volume:
            return part, None
        left = rest
    return None, (left[0] if left else None)


def _is_stack(whole: Rectangle, parts: Sequence[Rectangle]) -> bool:
    """Whether the parts lie one below the other from the top of the whole to its end, as they mostly do."""
    top, left, width = whole.start[0], whole.start[1:], whole.size[1:]
    for start, size in parts:
        if start != (top, *left) or size[1:] != width:
            return False
        top += size[0]
    return top == whole.stop[0]


def range_rectangles(shape: tuple[int, ...], first: int, stop: int) -> list[Rectangle]:
    """The rectangles whose elements, one rectangle after the other, are ``[first, stop)`` of the flattened tensor.

    The distributed optimizer shares a parameter out by its flattened elements, wherever its rows begin. Of a ``[4, 3]``
    parameter the elements 2 to 10 are the rest of row 0, rows 1 and 2, and the beginning of row 3. A tensor has at least
    one axis.
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


class Piece(NamedTuple):
    """A rectangle of a Hugging Face tensor and where it begins in the local parameter; both have the same size."""

    hf_name: str
    hf: Rectangle
    local_start: tuple[int, ...]

    @property
    def local(self) -> Rectangle:
        """Its place in the local parameter."""
        return Rectangle(self.local_start, self.hf.size)


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One local parameter.

    Args:
        name: the engine's own name of it.
        shape: its local shape.
        pieces: what it holds.
        padding: rectangles that belong to no Hugging Face tensor (vocabulary padding).

    Raises:
        ReshardError: pieces and padding overlap or leave a hole.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    padding: tuple[Rectangle, ...] = ()

    def __post_init__(self) -> None:
        whole = Rectangle.whole(self.shape)
        surplus, hole = tiling_fault(whole, [piece.local for piece in self.pieces] + list(self.padding))
        if surplus:
            raise ReshardError(
                f"parameter {self.name}: rectangle {surplus} is covered twice or lies outside {whole}; the shard specs "
                "are wrong"
            )
        if hole:
            raise ReshardError(f"parameter {self.name}: rectangle {hole} of {whole} is not covered by any shard")

    @classmethod
    def of_whole_tensor(cls, hf_name: str, shape: tuple[int, ...]) -> "ShardSpec":
        """A parameter that is a Hugging Face tensor in full, under its own name."""
        return cls(hf_name, shape, (Piece(hf_name, Rectangle.whole(shape), (0,) * len(shape)),))


Specs = Sequence[ShardSpec]
"""The parameters of a rank."""


def check_complete(replica: Iterable[ShardSpec], hf_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Proves that the ranks of one model replica together hold every Hugging Face tensor in full, and no other.

    Copies (norms on all tensor-parallel ranks, a tied head) may cover an element more than once.

    Raises:
        ReshardError: a tensor that is unknown or not covered, with the missing rectangle.
    """
    held: dict[str, set[Rectangle]] = {name: set() for name in hf_shapes}
    for spec in replica:
        for piece in spec.pieces:
            if piece.hf_name not in held:
                raise ReshardError(f"parameter {spec.name} holds {piece.hf_name}, which the model does not have")
            held[piece.hf_name].add(piece.hf)
    for name, shape in hf_shapes.items():
        left = Rectangle.whole(shape).minus(*held[name])
        if left:
            raise ReshardError(f"{name}: rectangle {left[0]} of {Rectangle.whole(shape)} is held by no rank")
