"""Which rectangles of which Hugging Face tensors a local parameter holds. Pure: no tensor is touched.

Query-key-value interleaving, gate-up fusion, vocabulary padding and tied embeddings are all just rectangles:

    local parameter  decoder.layers.0.mlp.linear_fc1.weight (tp rank 1 of 2, [8, 4])
        rows 0..4  <- gate_proj.weight rows 4..8
        rows 4..8  <- up_proj.weight   rows 4..8

Both engines describe their ranks so; ``plan.py`` intersects the two descriptions.
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
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.size, strict=True))

    def intersect(self, other: "Rectangle") -> "Rectangle | None":
        """What both have in common, or None."""
        # `map` of operators takes half the time of a generator.
        start = tuple(map(max, self.start, other.start))
        size = tuple(map(sub, map(min, self.stop, other.stop), start))
        return Rectangle(start, size) if min(size) > 0 else None

    def minus(self, other: "Rectangle") -> "list[Rectangle]":
        """What is left of this rectangle without the other, as disjoint rectangles."""
        common = self.intersect(other)
        if common is None:
            return [self]
        if common == self:
            return []
        rest: list[Rectangle] = []
        start, size = list(self.start), list(self.size)
        for axis in range(len(size)):
            before = common.start[axis] - start[axis]
            after = size[axis] - before - common.size[axis]
            for first, count in ((start[axis], before), (common.start[axis] + common.size[axis], after)):
                if count:
                    rest.append(
                        Rectangle(
                            (*start[:axis], first, *start[axis + 1 :]),
                            (*size[:axis], count, *size[axis + 1 :]),
                        )
                    )
            start[axis], size[axis] = common.start[axis], common.size[axis]
        return rest

    def moved(self, origin: tuple[int, ...], target: tuple[int, ...]) -> "Rectangle":
        """The same box in another frame, in which ``origin`` of this frame lies at ``target``."""
        return Rectangle(tuple(map(add, map(sub, self.start, origin), target)), self.size)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{a + b}" for a, b in zip(self.start, self.size, strict=True)) + "]"


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
        covered = [piece.local for piece in self.pieces] + list(self.padding)
        check_covered(Rectangle.whole(self.shape), covered, f"parameter {self.name}")

    @classmethod
    def of_whole_tensor(cls, hf_name: str, shape: tuple[int, ...]) -> "ShardSpec":
        """A parameter that is a Hugging Face tensor in full, under its own name."""
        return cls(hf_name, shape, (Piece(hf_name, Rectangle.whole(shape), (0,) * len(shape)),))


def check_covered(whole: Rectangle, parts: Sequence[Rectangle], what: str) -> None:
    """Proves that the parts tile the whole: every element in exactly one part.

    Raises:
        ReshardError: a hole, an overlap or a part outside, with its rectangle.
    """
    if _is_stack(whole, parts):
        return
    left = [whole]
    for part in parts:
        overlap = sum(common.volume for area in left if (common := area.intersect(part)))
        if overlap != part.volume:
            raise ReshardError(
                f"{what}: rectangle {part} is covered twice or lies outside {whole}; the shard specs are wrong"
            )
        left = [rest for area in left for rest in area.minus(part)]
    if left:
        raise ReshardError(f"{what}: rectangle {left[0]} of {whole} is not covered by any shard")


def _is_stack(whole: Rectangle, parts: Sequence[Rectangle]) -> bool:
    """Whether the parts lie one below the other from the top of the whole to its end, as they mostly do."""
    top, left, width = whole.start[0], whole.start[1:], whole.size[1:]
    for start, size in parts:
        if start != (top, *left) or size[1:] != width:
            return False
        top += size[0]
    return top == whole.stop[0]


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
        left = [Rectangle.whole(shape)]
        for part in held[name]:
            left = [rest for area in left for rest in area.minus(part)]
        if left:
            raise ReshardError(f"{name}: rectangle {left[0]} of {Rectangle.whole(shape)} is held by no rank")
