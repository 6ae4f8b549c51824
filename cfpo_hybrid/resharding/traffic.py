"""What a plan moves, in bytes by rank, beside the least that any plan could move between the same two layouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cfpo_hybrid.resharding.plan import ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Rectangle, ShardSpec


@dataclass(slots=True, kw_only=True)
class RankTraffic:
    """Bytes of one rank; the last two are the share of what it sends and receives that crosses between nodes.

    ``lower_bound`` is what the rank needs and its own source memory does not hold: nothing can do with less.
    """

    local: int = 0
    sent: int = 0
    received: int = 0
    lower_bound: int = 0
    sent_to_other_nodes: int = 0
    received_from_other_nodes: int = 0

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
        """Bytes of the largest sender over the mean of all ranks; 1 where nobody sends."""
        sent = [rank.sent for rank in self.ranks]
        return max(sent) / fmean(sent) if any(sent) else 1.0


def plan_traffic(
    plan: ReshardPlan,
    sources: Sequence[Sequence[ShardSpec]],
    destinations: Sequence[Sequence[ShardSpec]],
    itemsize: int,
) -> PlanTraffic:
    """Counts what every rank copies, sends and receives.

    Args:
        plan: made for the sources and destinations.
        sources: the shards of each source rank.
        destinations: the shards of each destination rank.
        itemsize: bytes of an element in a message and in the destination.
    """
    ranks = [RankTraffic() for _ in range(plan.world_size)]
    for route in (route for routes in plan.routes for route in routes):
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
    for rank, elements in enumerate(missing_elements(sources, destinations)):
        ranks[rank].lower_bound = elements * itemsize
    return PlanTraffic(tuple(ranks))


_Areas = dict[str, set[Rectangle]]


def missing_elements(sources: Sequence[Sequence[ShardSpec]], destinations: Sequence[Sequence[ShardSpec]]) -> list[int]:
    """Elements of Hugging Face tensors that each destination rank needs and does not hold as a source."""
    areas: dict[int, _Areas] = {}
    for specs in (*sources, *destinations):
        if id(specs) not in areas:  # replicas share their lists
            areas[id(specs)] = _areas(specs)
    known: dict[tuple[int, int], int] = {}
    for source, destination in zip(sources, destinations, strict=True):
        pair = (id(source), id(destination))
        if pair not in known:
            known[pair] = _missing(areas[pair[0]], areas[pair[1]])
    return [known[id(source), id(destination)] for source, destination in zip(sources, destinations, strict=True)]


def _areas(specs: Sequence[ShardSpec]) -> _Areas:
    areas: _Areas = {}
    for spec in specs:
        for piece in spec.pieces:
            areas.setdefault(piece.hf_name, set()).add(piece.hf)
    return areas


def _missing(held: _Areas, needed: _Areas) -> int:
    missing = sum(area.volume for areas in needed.values() for area in areas)
    for name in held.keys() & needed.keys():
        for area in needed[name]:
            left = [area]
            for own in held[name]:
                left = [rest for box in left for rest in box.minus(own)]
            missing -= area.volume - sum(box.volume for box in left)
    return missing
