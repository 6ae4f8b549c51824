"""Chooses the sender of every cargo of every rank, so that all senders have equal loads. Pure.

Each destination takes what it can from its own memory, the rest from its node, and from anywhere what its node lacks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from cfpo_hybrid.resharding.plan import Cargo, Route

_Demand = tuple[int, int]
"""A destination rank and the number of a cargo."""
_Group = tuple[int, list[int]]
"""The number of a cargo and destination ranks that take it together."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A cargo and the kinds of source ranks that hold it, each with the number of its offer."""

    cargo: Cargo
    offer_of_kind: Mapping[int, int]


class Assignment:
    """Chooses the senders.

    Args:
        offered: cargos by number.
        kind_of: of each rank, as a source.
        ranks_per_node: consecutive ranks that share a machine.
    """

    def __init__(self, offered: Sequence[Offered], kind_of: Sequence[int], ranks_per_node: int) -> None:
        self._offered, self._kind_of, self._ranks_per_node = offered, kind_of, ranks_per_node
        self._ranks: dict[int, list[int]] = defaultdict(list)
        self._on_node: dict[tuple[int, int], list[int]] = defaultdict(list)
        for rank, kind in enumerate(kind_of):
            self._ranks[kind].append(rank)
            self._on_node[kind, rank // ranks_per_node].append(rank)
        self._local: list[Route] = []
        self._demands: dict[tuple[int, ...], list[_Demand]] = defaultdict(list)
        self._asked: dict[tuple[tuple[int, ...], int], list[_Demand]] = {}

    def ask(self, rank: int, number: int) -> None:
        """Notes that a rank needs a cargo."""
        kinds = self._offered[number].offer_of_kind
        if self._kind_of[rank] in kinds:
            self._local.append(self._route(rank, (rank, number), 0, self._offered[number].cargo.volume))
            return
        asked = (tuple(kinds), rank // self._ranks_per_node)
        if asked not in self._asked:
            self._asked[asked] = self._demands[self._senders(*asked)]
        self._asked[asked].append((rank, number))

    def _senders(self, kinds: Sequence[int], node: int) -> tuple[int, ...]:
        """Who can send what these kinds hold to a node."""
        near = [sender for kind in kinds for sender in self._on_node.get((kind, node), ())]
        return tuple(sorted(near or chain.from_iterable(self._ranks[kind] for kind in kinds)))

    def routes(self, world_size: int) -> tuple[tuple[Route, ...], ...]:
        """The routes of each destination rank."""
        by_rank: list[list[Route]] = [[] for _ in range(world_size)]
        for route in self._local:
            by_rank[route.destination_rank].append(route)
        replica_of = {rank: index for ranks in self._ranks.values() for index, rank in enumerate(ranks)}
        loads = [0] * world_size
        # Those with the least choice first; the others then fill up who has less to send.
        for senders in sorted(self._demands, key=lambda senders: (len(senders), senders)):
            # The k-th replica takes from the k-th replica, so that all ranks send over the same distances.
            demands = sorted(self._demands[senders], key=lambda demand: (replica_of[demand[0]], demand))
            for route in self._share(senders, self._groups(senders, demands), loads):
                by_rank[route.destination_rank].append(route)
                loads[route.source_rank] += route.volume
        return tuple(map(tuple, by_rank))

    def _groups(self, senders: Sequence[int], demands: Iterable[_Demand]) -> list[_Group]:
        """Ranks on the node of all their senders take the same stretches of a cargo: packed once, read by all of them."""
        nodes = {sender // self._ranks_per_node for sender in senders}
        together: dict[tuple[int, int | None], list[int]] = defaultdict(list)
        for rank, number in demands:
            is_near = nodes == {rank // self._ranks_per_node}
            together[number, None if is_near else rank].append(rank)
        return [(number, ranks) for (number, _), ranks in together.items()]

    def _share(self, senders: Sequence[int], groups: Sequence[_Group], loads: Sequence[int]) -> Iterator[Route]:
        """Walks the groups and hands each sender the next stretch, as long as its quota."""
        volume = sum(self._offered[number].cargo.volume * len(ranks) for number, ranks in groups)
        quotas = iter(_quotas([loads[sender] for sender in senders], volume))
        remaining = iter(senders)
        sender, left, last = next(remaining), next(quotas), senders[-1]
        for number, ranks in groups:
            cargo, begin = self._offered[number].cargo, 0
            while begin < cargo.volume:
                end = cargo.volume if sender == last else cargo.border(max(begin, begin + left // len(ranks)))
                if end > begin:
                    yield from (self._route(sender, (rank, number), begin, end) for rank in ranks)
                left, begin = left - (end - begin) * len(ranks), end
                if begin < cargo.volume:
                    sender, left = next(remaining), left + next(quotas)

    def _route(self, sender: int, demand: _Demand, begin: int, end: int) -> Route:
        rank, number = demand
        return Route(sender, rank, number, self._offered[number].offer_of_kind[self._kind_of[sender]], begin, end)


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
