"""Makes the plan: intersects source shards with destination shards, and asks for a sender of all that is needed. Pure.

Ranks with the same shards are one kind (data-parallel replicas); all intersections are made once a kind. Every rank
computes the same plan from layouts alone, without a message.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import add, sub
from typing import NamedTuple

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.assignment import Assignment, Offered
from cfpo_hybrid.resharding.plan import Cargo, Item, Place, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec

_Specs = Sequence[ShardSpec]
_Atoms = tuple[tuple[Rectangle, tuple[int, ...]], ...]


def build_plan(sources: Sequence[_Specs], destinations: Sequence[_Specs], ranks_per_node: int) -> ReshardPlan:
    """Intersects two descriptions of the same model.

    Ranks that share one list of specs are recognised at no cost; equal lists cost a comparison.

    Args:
        sources: the shards of each source rank.
        destinations: the shards of each destination rank; rank ``i`` of both is the same process.
        ranks_per_node: consecutive ranks that share a machine.

    Raises:
        ReshardError: a destination rectangle that no source holds, named with its tensor.
    """
    world_size = max(len(sources), len(destinations))
    source_kinds = _Kinds.of(sources, world_size)
    destination_kinds = _Kinds.of(destinations, world_size)
    holdings = _Holdings(source_kinds.specs, destination_kinds.specs)
    offered = [holdings.cargos(specs, ranks[0]) for specs, ranks in destination_kinds]
    first_of_kind = [sum(map(len, offered[:kind])) for kind in range(len(offered))]
    all_offered = list(chain.from_iterable(offered))
    assignment = Assignment(all_offered, source_kinds.of_rank, ranks_per_node)
    for rank, kind in enumerate(destination_kinds.of_rank):
        for number in range(first_of_kind[kind], first_of_kind[kind] + len(offered[kind])):
            assignment.ask(rank, number)
    cargos = tuple(offer.cargo for offer in all_offered)
    return ReshardPlan(world_size, ranks_per_node, cargos, assignment.routes(world_size))


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The distinct lists of specs, and which rank has which."""

    specs: list[tuple[ShardSpec, ...]]
    of_rank: list[int]
    ranks: list[list[int]]

    @classmethod
    def of(cls, specs_of_ranks: Sequence[_Specs], world_size: int) -> "_Kinds":
        padded = [*specs_of_ranks, *[()] * (world_size - len(specs_of_ranks))]
        number_of: dict[tuple[ShardSpec, ...], int] = {}
        number_of_list: dict[int, int] = {}
        for specs in padded:
            if id(specs) not in number_of_list:
                number_of_list[id(specs)] = number_of.setdefault(tuple(specs), len(number_of))
        of_rank = [number_of_list[id(specs)] for specs in padded]
        ranks: list[list[int]] = [[] for _ in number_of]
        for rank, kind in enumerate(of_rank):
            ranks[kind].append(rank)
        return cls(list(number_of), of_rank, ranks)

    def __iter__(self) -> Iterator[tuple[tuple[ShardSpec, ...], list[int]]]:
        return zip(self.specs, self.ranks, strict=True)


class _Held(NamedTuple):
    """A rectangle of a tensor, the kinds of ranks that have all of it, and its place in each."""

    area: Rectangle
    kinds: tuple[int, ...]
    places: Mapping[int, Place]


class _Need(NamedTuple):
    """An item, who holds it, and where in what they hold it begins."""

    item: Item
    held: _Held
    inside: tuple[int, ...]


class _Holdings:
    """Which rectangles of which tensors the source ranks hold."""

    def __init__(self, sources: Sequence[_Specs], destinations: Sequence[_Specs]) -> None:
        wanted = {piece.hf_name for specs in destinations for spec in specs for piece in spec.pieces}
        areas: dict[str, dict[Rectangle, dict[int, Place]]] = {name: {} for name in wanted}
        for kind, specs in enumerate(sources):
            for spec in specs:
                for piece in spec.pieces:
                    if piece.hf_name in wanted:
                        # A rank with two copies (a tied head) offers the first.
                        of_kind = areas[piece.hf_name].setdefault(piece.hf, {})
                        of_kind.setdefault(kind, Place(spec.name, piece.local_start))
        self._of_tensor = {name: _disjoint(held) for name, held in areas.items()}

    def cargos(self, specs: _Specs, rank: int) -> list[Offered]:
        """All that a kind of destination needs, grouped by who holds it.

        Args:
            specs: its shards.
            rank: one of its ranks, for the error.
        """
        groups: dict[tuple[int, ...], list[_Need]] = defaultdict(list)
        for spec in specs:
            for piece in spec.pieces:
                missing = piece.hf.volume
                for held in self._of_tensor[piece.hf_name]:
                    found = _overlap(piece.hf, held.area)
                    if found:
                        part, from_piece, inside = found
                        place = Place(spec.name, tuple(map(add, piece.local_start, from_piece)))
                        groups[held.kinds].append(_Need(Item(piece.hf_name, part, place), held, inside))
                        missing -= part.volume
                if missing:
                    self._raise_missing(rank, spec, piece)
        return [_offered(kinds, needs) for kinds, needs in groups.items()]

    def _raise_missing(self, rank: int, spec: ShardSpec, piece: Piece) -> None:
        left = [piece.hf]
        for held in self._of_tensor[piece.hf_name]:
            left = [rest for box in left for rest in box.minus(held.area)]
        raise ReshardError(
            f"rank {rank} needs {piece.hf_name}{left[0]} for its parameter {spec.name}, but no rank holds it; "
            "source and destination do not describe the same model"
        )


def _disjoint(held: Mapping[Rectangle, Mapping[int, Place]]) -> list[_Held]:
    """What is held of a tensor as rectangles that do not overlap, as those of different kinds may."""
    areas, found = tuple(held), []
    if len(areas) == 1:
        return [_Held(areas[0], tuple(sorted(held[areas[0]])), held[areas[0]])]
    for atom, members in _atoms(areas):
        places: dict[int, Place] = {}
        for area in (areas[member] for member in members):
            for kind, (name, start) in held[area].items():
                places.setdefault(kind, Place(name, atom.moved(area.start, start).start))
        found.append(_Held(atom, tuple(sorted(places)), places))
    return found


def _offered(kinds: Sequence[int], needs: Sequence[_Need]) -> Offered:
    offers: dict[tuple[Place, ...], int] = {}
    offer_of_kind = {
        kind: offers.setdefault(tuple(need.held.places[kind] for need in needs), len(offers)) for kind in kinds
    }
    moved = (
        tuple(
            Place(name, tuple(map(add, start, need.inside))) for (name, start), need in zip(places, needs, strict=True)
        )
        for places in offers
    )
    return Offered(Cargo(tuple(need.item for need in needs), tuple(moved)), offer_of_kind)


@lru_cache(maxsize=1 << 14)
def _overlap(wanted: Rectangle, held: Rectangle) -> tuple[Rectangle, tuple[int, ...], tuple[int, ...]] | None:
    """What both have in common, and where in each it begins. Layers and experts are alike: few pairs are distinct."""
    part = wanted.intersect(held)
    if part is None:
        return None
    return part, tuple(map(sub, part.start, wanted.start)), tuple(map(sub, part.start, held.start))


@lru_cache(maxsize=1024)
def _atoms(areas: tuple[Rectangle, ...]) -> _Atoms:
    """Disjoint rectangles with the numbers of the areas that contain them; an area contains each or has none of it.

    Layers are alike, so a model has only a few distinct sets of areas.
    """
    atoms: list[tuple[Rectangle, tuple[int, ...]]] = []
    for number, area in enumerate(areas):
        alone, cut = [area], []
        for atom, members in atoms:
            common = atom.intersect(area)
            if common is None:
                cut.append((atom, members))
                continue
            cut.append((common, (*members, number)))
            cut.extend((rest, members) for rest in atom.minus(area))
            alone = [rest for box in alone for rest in box.minus(atom)]
        atoms = cut + [(rest, (number,)) for rest in alone]
    return tuple(atoms)
