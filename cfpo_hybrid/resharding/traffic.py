"""What a plan moves, in bytes by rank, beside the least that any plan could move between the same two layouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from cfpo_hybrid.resharding.plan import ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Rectangle, Specs

_Areas = dict[str, set[Rectangle]]
"""What is held of each tensor."""


@dataclass(slots=True, kw_only=True)
class RankTraffic:
    """Bytes of one rank.

    Args:
        local: copied within its memory.
        sent: to other ranks.
        received: from other ranks.
        lower_bound: what it needs and its own source memory does not hold: nothing can do with less.
        sent_to_other_nodes: of what it sends.
        received_from_other_nodes: of what it receives.
        is_source: it has source shards, and so something to send.
    """

    local: int = 0
    sent: int = 0
    received: int = 0
    lower_bound: int = 0
    sent_to_other_nodes: int = 0
    received_from_other_nodes: int = 0
    is_source: bool = True

    @property
    def ratio(self) -> float:
        """Bytes received over the lower bound; 1 where nothing must and nothing does move."""
        if self.lower_bound == 0:
            return 1.0 if self.received == 0 else float("inf")
        return self.received / self.lower_bound


@dataclass(frozen=True, slots=True)
class PlanTraffic:
    """The traffic of all ranks."""

    ranks: tuple[RankTraffic, ...]

    @property
    def ratio(self) -> float:
        """As of a rank, over the whole world."""
        return RankTraffic(
            received=sum(rank.received for rank in self.ranks), lower_bound=sum(rank.lower_bound for rank in self.ranks)
        ).ratio

    @property
    def imbalance(self) -> float:
        """Bytes of the largest sender over the mean of all ranks that are sources; 1 where nobody sends."""
        sent = [rank.sent for rank in self.ranks if rank.is_source]
        return max(sent) / fmean(sent) if any(sent) else 1.0


def plan_traffic(
    plan: ReshardPlan, sources: Sequence[Specs], destinations: Sequence[Specs], itemsize: int
) -> PlanTraffic:
    """Counts what every rank copies, sends and receives, by a plan made for these sources and destinations.

    ``itemsize`` are the bytes of an element in a message and in the destination.
    """
    ranks = [RankTraffic(is_source=bool(specs)) for specs in sources]
    for route in chain.from_iterable(plan.routes):
        volume = route.volume * itemsize
        source, destination = ranks[route.source_rank], ranks[route.destination_rank]
        if route.is_local:
            source.local += volume
            continue
        source.sent += volume
        destination.received += volume
        if route.source_rank // plan.ranks_per_node != route.destination_rank // plan.ranks_per_node:
            source.sent_to_other_nodes += volume
            destination.received_from_other_nodes += volume
    for rank, elements in enumerate(_missing_elements(sources, destinations)):
        ranks[rank].lower_bound = elements * itemsize
    return PlanTraffic(tuple(ranks))


def _missing_elements(sources: Sequence[Specs], destinations: Sequence[Specs]) -> list[int]:
    """Elements of Hugging Face tensors that each rank needs and does not have as a source."""
    distinct = {id(specs): specs for specs in (*sources, *destinations)}  # replicas share their lists
    areas = {key: _areas(specs) for key, specs in distinct.items()}
    pairs = [(id(source), id(destination)) for source, destination in zip(sources, destinations, strict=True)]
    missing = {pair: _missing(areas[pair[0]], areas[pair[1]]) for pair in set(pairs)}
    return [missing[pair] for pair in pairs]


def _areas(specs: Specs) -> _Areas:
    areas: _Areas = {}
    for spec in specs:
        for piece in spec.pieces:
            areas.setdefault(piece.hf_name, set()).add(piece.hf)
    return areas


def _missing(held: _Areas, needed: _Areas) -> int:
    missing = sum(area.volume for areas in needed.values() for area in areas)
    for name in held.keys() & needed.keys():
        for area in needed[name]:
            missing -= area.volume - sum(box.volume for box in area.minus(*held[name]))
    return missing
