"""Proves that a plan is right: every element of every destination is written once, and with the element that belongs there.

The proof looks at the copies themselves, as they will be carried out, and at the shard specs; not at how the plan was made.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, Region, Specs, check_complete, tiling_fault

_Pieces = Mapping[str, Sequence[Piece]]
"""The pieces of each parameter, in the order of their places, so that the one at a place is found quickly."""

_local_start = attrgetter("local_start")


def check_plan(
    plan: ReshardPlan,
    sources: Sequence[Specs],
    destinations: Sequence[Specs],
    tensors: Mapping[str, tuple[int, ...]],
    ranks: Iterable[int] | None = None,
) -> None:
    """Raises unless the plan does all of its work, once.

    Args:
        plan: what to prove.
        sources: the shards that each rank has.
        destinations: the shards that each rank needs.
        tensors: name and shape of every Hugging Face tensor, layers counted over the whole model.
        ranks: the destinations to look at; by default all of them. A worker needs to look only at its own.

    Raises:
        ReshardError: an element of a destination that no copy or more than one copy writes, a copy that writes where it
            should not or takes the wrong element, or a tensor that the destinations do not hold in full; with the names
            and the rectangle.
    """
    distinct = {id(specs): specs for specs in destinations}
    check_complete((spec for specs in distinct.values() for spec in specs), tensors)
    known: dict[int, _Pieces] = {}

    def pieces_of(specs: Specs) -> _Pieces:
        if id(specs) not in known:  # replicas share their lists
            known[id(specs)] = {spec.name: sorted(spec.pieces, key=_local_start) for spec in specs}
        return known[id(specs)]

    for rank in range(plan.world_size) if ranks is None else ranks:
        pieces = pieces_of(destinations[rank])
        written: dict[tuple[str, Piece], list[Rectangle]] = defaultdict(list)
        for route in plan.routes[rank]:
            for copy in plan.copies(route):
                piece = _check_content(copy, route.source_rank, pieces_of(sources[route.source_rank]), rank, pieces)
                written[copy.destination.name, piece].append(copy.destination.area)
        for name in pieces:
            for piece in pieces[name]:
                _check_tiled(rank, name, piece, written[name, piece])


def _check_content(copy: Copy, source_rank: int, sources: _Pieces, rank: int, destinations: _Pieces) -> Piece:
    """The piece that a copy writes into, with what belongs there."""
    taken_from = _piece(sources, copy.source, f"rank {source_rank} as a source")
    piece = _piece(destinations, copy.destination, f"rank {rank}")
    taken, written = _in_tensor(taken_from, copy.source.area), _in_tensor(piece, copy.destination.area)
    if taken != written:
        raise ReshardError(
            f"rank {rank}: the plan writes {taken} of rank {source_rank} where {copy.destination.name} holds {written}"
        )
    return piece


def _piece(pieces: _Pieces, region: Region, who: str) -> Piece:
    """The piece of a parameter that contains a region."""
    candidates = pieces.get(region.name, ())
    for number in range(bisect_right(candidates, region.area.start, key=_local_start) - 1, -1, -1):
        if candidates[number].local.intersect(region.area) == region.area:
            return candidates[number]
    raise ReshardError(f"{who}: the plan uses {region}, which is no rectangle of one Hugging Face tensor")


def _in_tensor(piece: Piece, local: Rectangle) -> Region:
    return Region(piece.hf_name, local.moved(piece.local_start, piece.hf.start))


def _check_tiled(rank: int, name: str, piece: Piece, areas: Sequence[Rectangle]) -> None:
    """The areas, each of which lies within the piece, have every element of it once."""
    doubled, hole = tiling_fault(piece.local, areas)
    if doubled:
        raise ReshardError(f"rank {rank}: the plan writes {_in_tensor(piece, doubled)} into {name} more than once")
    if hole:
        raise ReshardError(f"rank {rank}: the plan never writes {_in_tensor(piece, hole)} into {name}")
