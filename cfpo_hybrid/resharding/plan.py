"""Who copies what to whom, as data: what a destination needs in cargos, and routes that bring stretches of them.

A cargo is all that one kind of destination rank needs and that the same source ranks hold, item after item. A route
brings the elements ``[first, last)`` of a cargo from one rank to another, or from a rank to itself. Cargos are shared by
all replicas, so a plan for thousands of ranks stays small; the copies of a rank follow from them when they are asked for.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from cfpo_hybrid.resharding.shard_spec import Rectangle


@dataclass(frozen=True, slots=True)
class Copy:
    """One rectangle on its way from a source parameter to a destination parameter."""

    source_rank: int
    source_name: str
    source: Rectangle
    destination_rank: int
    destination_name: str
    destination: Rectangle

    @property
    def is_local(self) -> bool:
        """Stays within one process."""
        return self.source_rank == self.destination_rank

    @property
    def volume(self) -> int:
        """Elements."""
        return self.source.volume


class Place(NamedTuple):
    """Where a rectangle begins in a local parameter."""

    name: str
    start: tuple[int, ...]

    def rows(self, first: int, size: tuple[int, ...]) -> Rectangle:
        """A box of the parameter that begins ``first`` rows below the place."""
        return Rectangle((self.start[0] + first, *self.start[1:]), size)


class Item(NamedTuple):
    """A rectangle of a Hugging Face tensor and its place in the destination."""

    hf_name: str
    hf: Rectangle
    destination: Place

    @property
    def row(self) -> int:
        """Elements of one row."""
        return self.hf.volume // self.hf.size[0]


class Route(NamedTuple):
    """The elements ``[first, last)`` of a cargo, which begin and end between rows, from one rank to another.

    ``offer`` says where the source has them.
    """

    source_rank: int
    destination_rank: int
    cargo: int
    offer: int
    first: int
    last: int

    @property
    def is_local(self) -> bool:
        """Stays within one process."""
        return self.source_rank == self.destination_rank

    @property
    def volume(self) -> int:
        """Elements."""
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Cargo:
    """Items that the same ranks hold and the same ranks need.

    Args:
        items: one after the other.
        offers: the places of all items in a source; more than one where its holders name them differently (tied heads).
    """

    items: tuple[Item, ...]
    offers: tuple[tuple[Place, ...], ...]
    ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Elements up to the end of each item."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(item.hf.volume for item in self.items)))

    @property
    def volume(self) -> int:
        """Elements."""
        return self.ends[-1]

    def border(self, element: int) -> int:
        """The border between rows that is nearest to an element."""
        if element >= self.volume:
            return self.volume
        index = bisect_right(self.ends, element)
        item = self.items[index]
        begin = self.ends[index] - item.hf.volume
        return begin + (element - begin + item.row // 2) // item.row * item.row

    def copies(self, route: Route) -> Iterator[Copy]:
        """The copies of a route of this cargo, in the order of its items."""
        places = self.offers[route.offer]
        for index in range(bisect_right(self.ends, route.first), len(self.items)):
            item, end = self.items[index], self.ends[index]
            begin = end - item.hf.volume
            if begin >= route.last:
                return
            first = max(0, route.first - begin) // item.row
            size = ((min(end, route.last) - begin) // item.row - first, *item.hf.size[1:])
            yield Copy(
                source_rank=route.source_rank,
                source_name=places[index].name,
                source=places[index].rows(first, size),
                destination_rank=route.destination_rank,
                destination_name=item.destination.name,
                destination=item.destination.rows(first, size),
            )


@dataclass(frozen=True, slots=True)
class ReshardPlan:
    """Every copy, in one order that all ranks share.

    Args:
        world_size: number of ranks.
        ranks_per_node: consecutive ranks that share a machine.
        cargos: what moves.
        routes: of each destination rank, local and remote ones.
    """

    world_size: int
    ranks_per_node: int
    cargos: tuple[Cargo, ...]
    routes: tuple[tuple[Route, ...], ...]

    @property
    def copies(self) -> list[Copy]:
        """All copies of all ranks; many for a large world."""
        return self._copies(route for routes in self.routes for route in routes)

    def local(self, rank: int) -> list[Copy]:
        """Copies within a rank."""
        return self._copies(route for route in self.routes[rank] if route.is_local)

    def sent_by(self, rank: int) -> list[Copy]:
        """Copies that leave a rank."""
        every = (route for routes in self.routes for route in routes)
        return self._copies(route for route in every if route.source_rank == rank and not route.is_local)

    def received_by(self, rank: int) -> list[Copy]:
        """Copies that reach a rank from others."""
        return self._copies(route for route in self.routes[rank] if not route.is_local)

    def _copies(self, routes: Iterable[Route]) -> list[Copy]:
        return [copy for route in routes for copy in self.cargos[route.cargo].copies(route)]
