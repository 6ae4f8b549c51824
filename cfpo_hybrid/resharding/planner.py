"""Makes the plan: intersects source shards with destination shards and gives every sender an equal load. Pure.

Each destination takes what it can from its own memory, the rest from its node, and from anywhere what its node lacks.
Ranks with the same shards are one kind (data-parallel replicas); all intersections are made once a kind. Every rank
computes the same plan from layouts alone, without a message.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Cargo, Item, Place, ReshardPlan, Route
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec

_Specs = Sequence[ShardSpec]
_Atoms = tuple[tuple[Rectangle, tuple[int, ...]], ...]
_Demand = tuple[int, int]
"""A destination rank and the number of a cargo."""


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
    assignment = _Assignment(list(chain.from_iterable(offered)), source_kinds, ranks_per_node)
    for rank, kind in enumerate(destination_kinds.of_rank):
        for number in range(first_of_kind[kind], first_of_kind[kind] + len(offered[kind])):
            assignment.ask(rank, number)
    cargos = tuple(offer.cargo for offer in assignment.offered)
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


@dataclass(frozen=True, slots=True)
class _Offered:
    """A cargo and the kinds of source ranks that hold it, each with the number of its offer."""

    cargo: Cargo
    offer_of_kind: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Held:
    """A rectangle of a tensor, the kinds of ranks that have all of it, and its place in each."""

    area: Rectangle
    kinds: tuple[int, ...]
    places: Mapping[int, Place]

    def part(self, part: Rectangle) -> "_Held":
        """The same of a part of the rectangle."""
        if part == self.area:
            return self
        places = {kind: Place(name, part.moved(self.area.start, at).start) for kind, (name, at) in self.places.items()}
        return _Held(part, self.kinds, places)


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

    def cargos(self, specs: _Specs, rank: int) -> list[_Offered]:
        """All that a kind of destination needs, grouped by who holds it.

        Args:
            specs: its shards.
            rank: one of its ranks, for the error.
        """
        groups: dict[tuple[int, ...], list[tuple[Item, _Held]]] = defaultdict(list)
        for spec in specs:
            for piece in spec.pieces:
                missing = piece.hf.volume
                for held in self._of_tensor[piece.hf_name]:
                    part = piece.hf.intersect(held.area)
                    if part:
                        item = Item(piece.hf_name, part, Place(spec.name, piece.to_local(part).start))
                        groups[held.kinds].append((item, held.part(part)))
                        missing -= part.volume
                if missing:
                    self._raise_missing(rank, spec, piece)
        return [_offered(kinds, rows) for kinds, rows in groups.items()]

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
    for atom, members in _atoms(areas):
        places: dict[int, Place] = {}
        for area in (areas[member] for member in members):
            for kind, (name, start) in held[area].items():
                places.setdefault(kind, Place(name, atom.moved(area.start, start).start))
        found.append(_Held(atom, tuple(sorted(places)), places))
    return found


def _offered(kinds: Sequence[int], rows: Sequence[tuple[Item, _Held]]) -> _Offered:
    offers: dict[tuple[Place, ...], int] = {}
    offer_of_kind = {
        kind: offers.setdefault(tuple(held.places[kind] for _, held in rows), len(offers)) for kind in kinds
    }
    return _Offered(Cargo(tuple(item for item, _ in rows), tuple(offers)), offer_of_kind)


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


class _Assignment:
    """Chooses the sender of every cargo of every rank."""

    def __init__(self, offered: Sequence[_Offered], sources: _Kinds, ranks_per_node: int) -> None:
        self.offered = offered
        self._kind_of = sources.of_rank
        self._ranks = sources.ranks
        self._ranks_per_node = ranks_per_node
        self._on_node: dict[tuple[int, int], list[int]] = defaultdict(list)
        for rank, kind in enumerate(sources.of_rank):
            self._on_node[kind, rank // ranks_per_node].append(rank)
        self._local: list[Route] = []
        self._demands: dict[tuple[int, ...], list[_Demand]] = defaultdict(list)

    def ask(self, rank: int, number: int) -> None:
        """Notes that a rank needs a cargo."""
        kinds = self.offered[number].offer_of_kind
        if self._kind_of[rank] in kinds:
            self._local.append(self._route(rank, (rank, number), 0, self.offered[number].cargo.volume))
            return
        node = rank // self._ranks_per_node
        near = [sender for kind in kinds for sender in self._on_node.get((kind, node), ())]
        senders = near or [sender for kind in kinds for sender in self._ranks[kind]]
        self._demands[tuple(sorted(senders))].append((rank, number))

    def routes(self, world_size: int) -> tuple[tuple[Route, ...], ...]:
        """The routes of each destination rank."""
        by_rank: list[list[Route]] = [[] for _ in range(world_size)]
        for route in self._local:
            by_rank[route.destination_rank].append(route)
        replica_of = {rank: index for ranks in self._ranks for index, rank in enumerate(ranks)}
        loads = [0] * world_size
        # Those with the least choice first; the others then fill up who has less to send.
        for senders in sorted(self._demands, key=lambda senders: (len(senders), senders)):
            # The k-th replica takes from the k-th replica, so that all ranks send over the same distances.
            demands = sorted(self._demands[senders], key=lambda demand: (replica_of[demand[0]], demand))
            for route in self._share(senders, demands, loads):
                by_rank[route.destination_rank].append(route)
                loads[route.source_rank] += route.volume
        return tuple(map(tuple, by_rank))

    def _share(self, senders: Sequence[int], demands: Sequence[_Demand], loads: Sequence[int]) -> Iterator[Route]:
        """Walks the demands and hands each sender the next stretch, as long as its quota."""
        quotas = iter(_quotas([loads[sender] for sender in senders], sum(self._volume(demand) for demand in demands)))
        remaining = iter(senders)
        sender, left, last = next(remaining), next(quotas), senders[-1]
        for demand in demands:
            cargo, begin = self.offered[demand[1]].cargo, 0
            while begin < cargo.volume:
                end = cargo.volume if sender == last else cargo.border(max(begin, begin + left))
                if end > begin:
                    yield self._route(sender, demand, begin, end)
                left, begin = left - (end - begin), end
                if begin < cargo.volume:
                    sender, left = next(remaining), left + next(quotas)

    def _volume(self, demand: _Demand) -> int:
        return self.offered[demand[1]].cargo.volume

    def _route(self, sender: int, demand: _Demand, begin: int, end: int) -> Route:
        rank, number = demand
        return Route(sender, rank, number, self.offered[number].offer_of_kind[self._kind_of[sender]], begin, end)


def _quotas(loads: Sequence[int], volume: int) -> list[int]:
    """What each sender adds to its load so that the smallest loads rise to one level, as water would.

    Example: ``_quotas([0, 4, 9], 6) == [5, 1, 0]``.
    """
    below, level = 0, 0
    ordered = sorted(loads)
    for count, load in enumerate(ordered, start=1):
        below += load
        level = -(-(volume + below) // count)
        if count == len(ordered) or level <= ordered[count]:
            break
    return [max(0, level - load) for load in loads]
