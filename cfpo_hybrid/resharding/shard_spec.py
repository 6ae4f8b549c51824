"""Which rectangles of which Hugging Face tensors a local parameter holds. Pure: no tensor is touched.

Query-key-value interleaving, gate-up fusion, vocabulary padding and tied embeddings are all just rectangles:

    local parameter  decoder.layers.0.mlp.linear_fc1.weight (tp rank 1 of 2, [8, 4])
        rows 0..4  <- gate_proj.weight rows 4..8
        rows 4..8  <- up_proj.weight   rows 4..8

Both engines describe their ranks so; ``planner.py`` intersects the two descriptions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.rectangle import Rectangle, tiling_fault


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
