"""Proves that a plan is right: every element of every destination is written once, and with the element that belongs there.

The proof looks at the copies themselves, as they will be carried out, and at the shard specs; not at how the plan was made.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec, check_complete

_Specs = Sequence[ShardSpec]


def check_plan(
    plan: ReshardPlan,
    sources: Sequence[_Specs],
    destinations: Sequence[_Specs],
    tensors: Mapping[str, tuple[int, ...]],
    ranks: Iterable[int] | None = None,
) -> None:
    """Raises unless the plan does all of its work, once.

    Args:
        plan: what to prove.
        sources: the shards of each source rank.
        destinations: the shards of each destination rank.
        tensors: name and shape of every Hugging Face tensor, layers counted over the whole model.
        ranks: the destinations to look at; by default all of them. A worker needs to look only at its own.

    Raises:
        ReshardError: an element of a destination that no copy or more than one copy writes, a copy that writes where it
            should not or takes the wrong element, or a tensor that the destinations do not hold in full; with the names
            and the rectangle.
    """
    distinct = {id(specs): specs for specs in destinations}
    check_complete((spec for specs in distinct.values() for spec in specs), tensors)
    index = _Index()
    for rank in range(plan.world_size) if ranks is None else ranks:
        shards = index.of(destinations[rank])
        areas: dict[tuple[str, int], list[Rectangle]] = defaultdict(list)
        for copy in (*plan.local(rank), *plan.received_by(rank)):
            number = _check_content(copy, index.of(sources[copy.source_rank]), shards)
            areas[copy.destination_name, number].append(copy.destination)
        for name, shard in shards.items():
            for number, piece in enumerate(shard.pieces):
                _check_tiled(rank, name, piece, areas[name, number])


class _Shard:
    """A parameter's pieces in the order of their places, so that the one at a place is found quickly."""

    def __init__(self, spec: ShardSpec) -> None:
        self.pieces = sorted(spec.pieces, key=lambda piece: piece.local_start)
        self._starts = [piece.local_start for piece in self.pieces]

    def find(self, area: Rectangle) -> int | None:
        """The number of the piece that contains an area."""
        for number in range(bisect_right(self._starts, area.start) - 1, -1, -1):
            if self.pieces[number].local.intersect(area) == area:
                return number
        return None


class _Index:
    """Shards by parameter name, made once for each list of specs."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, _Shard]] = {}

    def of(self, specs: _Specs) -> dict[str, _Shard]:
        if id(specs) not in self._known:
            self._known[id(specs)] = {spec.name: _Shard(spec) for spec in specs}
        return self._known[id(specs)]


def _check_content(copy: Copy, sources: Mapping[str, _Shard], destinations: Mapping[str, _Shard]) -> int:
    """The number of the piece that a copy writes into, with what belongs there."""
    source, _ = _piece(sources, copy.source_name, copy.source, f"rank {copy.source_rank} as a source")
    piece, number = _piece(destinations, copy.destination_name, copy.destination, f"rank {copy.destination_rank}")
    taken, written = _to_hf(source, copy.source), _to_hf(piece, copy.destination)
    if (source.hf_name, taken) != (piece.hf_name, written):
        raise ReshardError(
            f"rank {copy.destination_rank}: the plan writes {source.hf_name}{taken} of rank {copy.source_rank} where "
            f"{copy.destination_name} holds {piece.hf_name}{written}"
        )
    return number


def _piece(shards: Mapping[str, _Shard], name: str, area: Rectangle, who: str) -> tuple[Piece, int]:
    number = shards[name].find(area) if name in shards else None
    if number is None:
        raise ReshardError(f"{who}: the plan uses {name}{area}, which is no rectangle of one Hugging Face tensor")
    return shards[name].pieces[number], number


def _to_hf(piece: Piece, area: Rectangle) -> Rectangle:
    return area.moved(piece.local_start, piece.hf.start)


def _check_tiled(rank: int, name: str, piece: Piece, areas: Iterable[Rectangle]) -> None:
    """The areas, each of which lies within the piece, have every element of it once."""
    left = [piece.local]
    for area in areas:
        rest = [box for before in left for box in before.minus(area)]
        written = sum(box.volume for box in left) - sum(box.volume for box in rest)
        if written != area.volume:
            raise ReshardError(
                f"rank {rank}: the plan writes {piece.hf_name}{_to_hf(piece, area)} into {name} more than once"
            )
        left = rest
    if left:
        raise ReshardError(f"rank {rank}: the plan never writes {piece.hf_name}{_to_hf(piece, left[0])} into {name}")
