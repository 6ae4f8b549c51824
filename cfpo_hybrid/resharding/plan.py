"""Who copies what to whom, as data: what a destination needs in cargos, and routes that bring stretches of them.

A cargo is all that one kind of destination rank needs and that the same source ranks hold, rectangle after rectangle. A
route brings the elements ``[first, last)`` of a cargo from one rank to another, or from a rank to itself. Cargos are
shared by all replicas, so a plan for thousands of ranks stays small; the copies follow from it when they are asked for.

A rank of a plan is a process. It may hold source shards, destination shards, both (colocated engines) or neither.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.shard_spec import Rectangle, Region


class Copy(NamedTuple):
    """A rectangle of a source parameter and the one of a destination parameter that it is written into."""

    source: Region
    destination: Region

    @property
    def volume(self) -> int:
        """Elements."""
        return self.source.area.volume

    def along(self, axis: int, first: int, count: int) -> "Copy":
        """As ``Rectangle.along``, of both."""
        return Copy(self.source.along(axis, first, count), self.destination.along(axis, first, count))


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
    """What the same ranks hold and the same ranks need: rectangles, one after the other, under three names each.

    Args:
        tensors: in the checkpoint.
        destinations: in a rank that needs them.
        offers: in a rank that holds them; more than one where holders name them differently (tied heads).
    """

    tensors: tuple[Region, ...]
    destinations: tuple[Region, ...]
    offers: tuple[tuple[Region, ...], ...]
    ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Elements up to the end of each rectangle."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(region.area.volume for region in self.tensors)))

    @property
    def volume(self) -> int:
        """Elements."""
        return self.ends[-1]

    def border(self, element: int) -> int:
        """The border between rows that is nearest to an element."""
        if element >= self.volume:
            return self.volume
        index = bisect_right(self.ends, element)
        begin, row = self._begin(index), self._row(index)
        return begin + (element - begin + row // 2) // row * row

    def copies(self, route: Route) -> Iterator[Copy]:
        """The copies of a route of this cargo, in the order of its rectangles."""
        for index in range(bisect_right(self.ends, route.first), len(self.ends)):
            begin, row = self._begin(index), self._row(index)
            if begin >= route.last:
                return
            first = max(0, route.first - begin) // row
            rows = (min(self.ends[index], route.last) - begin) // row - first
            yield Copy(self.offers[route.offer][index], self.destinations[index]).along(0, first, rows)

    def _begin(self, index: int) -> int:
        """Elements before a rectangle."""
        return self.ends[index - 1] if index else 0

    def _row(self, index: int) -> int:
        """Elements of one row of a rectangle."""
        area = self.tensors[index].area
        return area.volume // area.size[0]


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

    def copies(self, route: Route) -> Iterator[Copy]:
        """The copies of one of its routes."""
        return self.cargos[route.cargo].copies(route)

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, to be looked at, compared and read back.

            {"version": 1, "world_size": 4, "ranks_per_node": 4,
             "cargos": [{"items": [{"tensor": ..., "start": [...], "size": [...], "destination": [name, [...]]}, ...],
                         "offers": [[[name, [...]], ...], ...]}, ...],
             "routes": [[source rank, destination rank, cargo, offer, first element, end], ...]}

        An offer says for each item the name of a parameter and where in it the item begins.
        """
        content = {
            "version": FILE_VERSION,
            "world_size": self.world_size,
            "ranks_per_node": self.ranks_per_node,
            "cargos": [_cargo_to_json(cargo) for cargo in self.cargos],
            "routes": [route for routes in self.routes for route in routes],
        }
        path.write_text(json.dumps(content))

    @classmethod
    def load(cls, path: Path) -> "ReshardPlan":
        """Reads what :meth:`save` wrote.

        Raises:
            ReshardError: another version.
        """
        content = json.loads(path.read_text())
        if content["version"] != FILE_VERSION:
            raise ReshardError(
                f"{path} has version {content['version']} of a reshard plan; this program reads {FILE_VERSION}"
            )
        routes: list[list[Route]] = [[] for _ in range(content["world_size"])]
        for numbers in content["routes"]:
            route = Route(*numbers)
            routes[route.destination_rank].append(route)
        cargos = tuple(map(_cargo_from_json, content["cargos"]))
        return cls(content["world_size"], content["ranks_per_node"], cargos, tuple(map(tuple, routes)))


FILE_VERSION = 1


def _cargo_to_json(cargo: Cargo) -> dict[str, Any]:
    items = [
        {"tensor": name, "start": area.start, "size": area.size, "destination": (destination, local.start)}
        for (name, area), (destination, local) in zip(cargo.tensors, cargo.destinations, strict=True)
    ]
    return {"items": items, "offers": [[(name, area.start) for name, area in offer] for offer in cargo.offers]}


def _cargo_from_json(found: dict[str, Any]) -> Cargo:
    items, sizes = found["items"], [tuple(item["size"]) for item in found["items"]]

    def regions(places: Any) -> tuple[Region, ...]:
        return tuple(
            Region(name, Rectangle(tuple(start), size)) for (name, start), size in zip(places, sizes, strict=True)
        )

    return Cargo(
        regions((item["tensor"], item["start"]) for item in items),
        regions(item["destination"] for item in items),
        tuple(map(regions, found["offers"])),
    )
