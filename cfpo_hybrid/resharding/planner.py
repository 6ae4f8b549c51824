"""Makes the plan: intersects source shards with destination shards, and chooses a sender of all that is needed. Pure.

1. Ranks with the same shards are one kind (data-parallel replicas); what follows is done once a kind.
2. What the sources hold of each tensor is cut into rectangles that do not overlap.
3. What a destination needs is intersected with these. What the same kinds of sources hold of it is one cargo.
4. Each rank's cargos are shared out over the ranks that could send them, so that all senders have equal loads. A
   destination takes what it can from its own memory, the rest from its node, and from anywhere what its node lacks.

Every rank computes the same plan from layouts alone, without a message.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Cargo, ReshardPlan, Route
from cfpo_hybrid.resharding.shard_spec import Rectangle, Region, ShardSpec, Specs

_Demand = tuple[int, int]
"""A destination rank and the number of a cargo."""


def build_plan(sources: Sequence[Specs], destinations: Sequence[Specs], ranks_per_node: int) -> ReshardPlan:
    """Intersects two descriptions of the same model.

    A rank is a process. Where both engines run in every process, each has shards in both lists; where they have pools of
    their own, those of one have none (an empty list) as sources, those of the other none as destinations. Ranks that
    share one list of specs are recognised at no cost; equal lists cost a comparison.

    Args:
        sources: the shards that each rank has.
        destinations: the shards that each rank needs.
        ranks_per_node: consecutive ranks that share a machine.

    Raises:
        ReshardError: a destination rectangle that no source holds, named with its tensor; or lists of unequal length.
    """
    if len(sources) != len(destinations):
        raise ReshardError(
            f"{len(sources)} ranks as sources and {len(destinations)} as destinations; list every process in both, with "
            "no shards where it has none"
        )
    source_kinds, kind_of_source = _kinds(sources)
    destination_kinds, kind_of_destination = _kinds(destinations)
    wanted = {piece.hf_name for specs in destination_kinds for spec in specs for piece in spec.pieces}
    held = _held_areas(source_kinds, wanted)
    offered: list[tuple[Cargo, Mapping[int, int]]] = []
    needed: list[range] = []
    for kind, specs in enumerate(destination_kinds):
        first = len(offered)
        offered += _cargos(specs, held, rank=kind_of_destination.index(kind))
        needed.append(range(first, len(offered)))
    cargos, offers = tuple(cargo for cargo, _ in offered), [offer_of_kind for _, offer_of_kind in offered]
    assignment = _Assignment(cargos, offers, kind_of_source, ranks_per_node)
    routes = assignment.routes([needed[kind] for kind in kind_of_destination])
    return ReshardPlan(len(sources), ranks_per_node, cargos, routes)


def _kinds(specs_of_ranks: Sequence[Specs]) -> tuple[list[tuple[ShardSpec, ...]], list[int]]:
    """The distinct lists of specs, and the number of each rank's among them."""
    number_of: dict[tuple[ShardSpec, ...], int] = {}
    number_of_list: dict[int, int] = {}
    for specs in specs_of_ranks:
        if id(specs) not in number_of_list:
            number_of_list[id(specs)] = number_of.setdefault(tuple(specs), len(number_of))
    return list(number_of), [number_of_list[id(specs)] for specs in specs_of_ranks]


class _Held(NamedTuple):
    """A rectangle of a tensor, the kinds of source ranks that have all of it, and where each has it."""

    area: Rectangle
    kinds: tuple[int, ...]
    regions: Mapping[int, Region]


def _held_areas(source_kinds: Sequence[Specs], wanted: Iterable[str]) -> dict[str, list[_Held]]:
    """What the sources hold of each wanted tensor, as rectangles that do not overlap, as those of different kinds may."""
    areas: dict[str, dict[Rectangle, dict[int, Region]]] = {name: {} for name in wanted}
    for kind, specs in enumerate(source_kinds):
        for spec in specs:
            for piece in spec.pieces:
                if piece.hf_name in areas:
                    # A rank with two copies (a tied head) offers the first.
                    of_kind = areas[piece.hf_name].setdefault(piece.hf, {})
                    of_kind.setdefault(kind, Region(spec.name, piece.local))
    return {name: _disjoint(held) for name, held in areas.items()}


def _disjoint(held: Mapping[Rectangle, Mapping[int, Region]]) -> list[_Held]:
    if len(held) == 1:
        ((whole, only),) = held.items()
        return [_Held(whole, tuple(only), only)]
    found = []
    for part, containing in _overlay(tuple(held)):
        regions: dict[int, Region] = {}
        for area in containing:
            for kind, (name, local) in held[area].items():
                regions.setdefault(kind, Region(name, part.moved(area.start, local.start)))
        found.append(_Held(part, tuple(sorted(regions)), regions))
    return found


@lru_cache(maxsize=1024)
def _overlay(areas: tuple[Rectangle, ...]) -> tuple[tuple[Rectangle, tuple[Rectangle, ...]], ...]:
    """The areas cut where their borders cross: disjoint rectangles, each with the areas that contain it.

    Layers are alike, so a model has only a few distinct sets of areas.
    """
    parts: list[tuple[Rectangle, tuple[Rectangle, ...]]] = []
    for area in areas:
        alone, cut = area.minus(*(part for part, _ in parts)), []
        for part, containing in parts:
            common = part.intersect(area)
            if common is None:
                cut.append((part, containing))
                continue
            cut.append((common, (*containing, area)))
            cut.extend((rest, containing) for rest in part.minus(area))
        parts = cut + [(rest, (area,)) for rest in alone]
    return tuple(parts)


_Need = tuple[Region, Region, _Held]
"""A rectangle of a tensor, its place in a destination, and what sources hold of the tensor around it."""


def _cargos(specs: Specs, held: Mapping[str, Sequence[_Held]], rank: int) -> list[tuple[Cargo, Mapping[int, int]]]:
    """All that a kind of destination needs, grouped by who holds it; with each kind's number of offer.

    An error names ``rank``, one of its ranks.
    """
    needs: dict[tuple[int, ...], list[_Need]] = defaultdict(list)
    for spec in specs:
        for piece in spec.pieces:
            missing = piece.hf.volume
            for source in held[piece.hf_name]:
                part = _intersection(piece.hf, source.area)
                if part:
                    place = Region(spec.name, part.moved(piece.hf.start, piece.local_start))
                    needs[source.kinds].append((Region(piece.hf_name, part), place, source))
                    missing -= part.volume
            if missing:
                lost = piece.hf.minus(*(source.area for source in held[piece.hf_name]))[0]
                raise ReshardError(
                    f"rank {rank} needs {piece.hf_name}{lost} for its parameter {spec.name}, but no rank holds it; "
                    "source and destination do not describe the same model"
                )
    return [_cargo(kinds, needs_of_kinds) for kinds, needs_of_kinds in needs.items()]


@lru_cache(maxsize=1 << 14)
def _intersection(wanted: Rectangle, held: Rectangle) -> Rectangle | None:
    """Layers and experts are alike: few pairs are distinct."""
    return wanted.intersect(held)


def _cargo(kinds: Sequence[int], needs: Sequence[_Need]) -> tuple[Cargo, Mapping[int, int]]:
    """What these kinds of sources hold, and the number of each kind's offer of it."""
    offers: dict[tuple[Region, ...], int] = {}
    offer_of_kind = {
        kind: offers.setdefault(tuple(held.regions[kind] for _, _, held in needs), len(offers)) for kind in kinds
    }
    tensors, destinations, _ = zip(*needs, strict=True)
    inside = (
        tuple(
            Region(name, wanted.area.moved(held.area.start, local.start))
            for (name, local), (wanted, _, held) in zip(offer, needs, strict=True)
        )
        for offer in offers
    )
    return Cargo(tensors, destinations, tuple(inside)), offer_of_kind


class _Assignment:
    """Chooses the senders.

    Args:
        cargos: what is needed, by number.
        offers: of each cargo, the kinds of source ranks that hold it, each with the number of its offer.
        kind_of: of each rank, as a source.
        ranks_per_node: consecutive ranks that share a machine.
    """

    def __init__(
        self, cargos: Sequence[Cargo], offers: Sequence[Mapping[int, int]], kind_of: Sequence[int], ranks_per_node: int
    ) -> None:
        self._cargos, self._offers, self._kind_of, self._ranks_per_node = cargos, offers, kind_of, ranks_per_node
        self._ranks: dict[int, list[int]] = defaultdict(list)
        self._on_node: dict[tuple[int, int], list[int]] = defaultdict(list)
        for rank, kind in enumerate(kind_of):
            self._ranks[kind].append(rank)
            self._on_node[kind, rank // ranks_per_node].append(rank)

    def routes(self, needed: Sequence[Iterable[int]]) -> tuple[tuple[Route, ...], ...]:
        """The routes of each destination rank, from the numbers of the cargos that each needs."""
        by_rank: list[list[Route]] = [[] for _ in needed]
        demands: dict[tuple[int, ...], list[_Demand]] = defaultdict(list)
        known: dict[tuple[tuple[int, ...], int], list[_Demand]] = {}
        for rank, numbers in enumerate(needed):
            for number in numbers:
                if self._kind_of[rank] in self._offers[number]:
                    by_rank[rank].append(self._route(rank, (rank, number), 0, self._cargos[number].volume))
                    continue
                asked = tuple(self._offers[number]), rank // self._ranks_per_node
                if asked not in known:
                    known[asked] = demands[self._senders(*asked)]
                known[asked].append((rank, number))
        for route in self._remote_routes(demands):
            by_rank[route.destination_rank].append(route)
        return tuple(map(tuple, by_rank))

    def _senders(self, kinds: Sequence[int], node: int) -> tuple[int, ...]:
        """Who can send what these kinds hold to a node."""
        near = [sender for kind in kinds for sender in self._on_node.get((kind, node), ())]
        return tuple(sorted(near or chain.from_iterable(self._ranks[kind] for kind in kinds)))

    def _remote_routes(self, demands: Mapping[tuple[int, ...], Sequence[_Demand]]) -> Iterator[Route]:
        """The routes of what each set of senders is asked for."""
        replica_of = {rank: index for ranks in self._ranks.values() for index, rank in enumerate(ranks)}
        loads = [0] * len(self._kind_of)
        # Those with the least choice first; the others then fill up who has less to send.
        for senders in sorted(demands, key=lambda senders: (len(senders), senders)):
            # The k-th replica takes from the k-th replica, so that all ranks send over the same distances.
            in_order = sorted(demands[senders], key=lambda demand: (replica_of[demand[0]], demand))
            for route in self._share(senders, self._together(senders, in_order), loads):
                loads[route.source_rank] += route.volume
                yield route

    def _together(self, senders: Sequence[int], demands: Iterable[_Demand]) -> list[tuple[int, list[int]]]:
        """Cargos and who takes them: ranks on the node of all their senders take the same stretches of a cargo."""
        nodes = {sender // self._ranks_per_node for sender in senders}
        together: dict[tuple[int, int | None], list[int]] = defaultdict(list)
        for rank, number in demands:
            is_near = nodes == {rank // self._ranks_per_node}
            together[number, None if is_near else rank].append(rank)
        return [(number, ranks) for (number, _), ranks in together.items()]

    def _share(
        self, senders: Sequence[int], taken: Sequence[tuple[int, list[int]]], loads: Sequence[int]
    ) -> Iterator[Route]:
        """Walks what is taken and hands each sender the next stretch, as long as its quota."""
        volume = sum(self._cargos[number].volume * len(ranks) for number, ranks in taken)
        quotas = iter(_quotas([loads[sender] for sender in senders], volume))
        remaining = iter(senders)
        sender, left, last = next(remaining), next(quotas), senders[-1]
        for number, ranks in taken:
            cargo, begin = self._cargos[number], 0
            while begin < cargo.volume:
                end = cargo.volume if sender == last else cargo.border(max(begin, begin + left // len(ranks)))
                if end > begin:
                    yield from (self._route(sender, (rank, number), begin, end) for rank in ranks)
                left, begin = left - (end - begin) * len(ranks), end
                if begin < cargo.volume:
                    sender, left = next(remaining), left + next(quotas)

    def _route(self, sender: int, demand: _Demand, begin: int, end: int) -> Route:
        rank, number = demand
        return Route(sender, rank, number, self._offers[number][self._kind_of[sender]], begin, end)


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
