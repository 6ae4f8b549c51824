"""Rectangles of parameters into one flat buffer, and out of it again."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.shard_spec import Rectangle


class Cut(NamedTuple):
    """A rectangle of a parameter, ready to be taken from it as often as needed."""

    name: str
    size: tuple[int, ...]
    slices: tuple[slice, ...]

    @classmethod
    def at(cls, name: str, area: Rectangle) -> "Cut":
        """The rectangle of that parameter."""
        return cls(name, area.size, area.slices)

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """A view of it.

        Raises:
            ReshardError: no such parameter, or one that is too small.
        """
        if self.name not in parameters:
            raise ReshardError(f"parameter {self.name} of the reshard plan does not exist in this rank's engine")
        view = parameters[self.name][self.slices]
        if view.shape != self.size:
            area = Rectangle(tuple(cut.start for cut in self.slices), self.size)
            shape = tuple(parameters[self.name].shape)
            raise ReshardError(f"parameter {self.name} of shape {shape} has no rectangle {area}")
        return view


Slot = tuple[Cut, Tensor]
"""A rectangle and its place in a buffer, which has its shape."""


def slots(areas: Iterable[tuple[str, Rectangle]], buffer: Tensor) -> list[Slot]:
    """Rectangles of parameters, given by name, one after the other in a buffer."""
    found, offset = [], 0
    for name, area in areas:
        found.append((Cut.at(name, area), buffer[offset : offset + area.volume].view(area.size)))
        offset += area.volume
    return found


def pack(contents: Iterable[Slot], sources: Mapping[str, Tensor]) -> None:
    """Fills the buffer, cast to its dtype."""
    for cut, place in contents:
        place.copy_(cut.of(sources))


def unpack(contents: Iterable[Slot], destinations: Mapping[str, Tensor]) -> None:
    """Empties the buffer into the parameters."""
    for cut, place in contents:
        cut.of(destinations).copy_(place)
