"""Chooses who sends what to whom, so that all senders have equal loads. Pure.

Each destination takes what it can from its own memory, the rest from its node, and from anywhere what its node lacks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from cfpo_hybrid.resharding.plan import Cargo, Route

_Demand = tuple[int, int]
"""A destination rank and the number of a cargo."""


class Assignment:
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
        """The routes of each destination rank.

        Args:
            needed: the numbers of the cargos that each rank needs.
        """
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
