"""Who copies what to whom: the intersection of source shards and destination shards. Pure data.

For each rectangle that a destination needs, the plan looks for sources in the order: the same rank (a local copy), the
same node, any node; among equals the sender with the least bytes so far. What it takes is cut out of the rectangle, so
each destination element is written exactly once; a remainder that nobody holds raises. Every rank computes the same
plan from layouts alone, without a message.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec


@dataclass(frozen=True, slots=True)
class Copy:
    """One rectangle on its way from a source parameter to a destination parameter."""

    source_rank: int
    source_name: str
    source: Rectangle
    destination_rank: int
    destination_name: str
    destination: Rectangle

    @property
    def is_local(self) -> bool:
        """Stays within one process."""
        return self.source_rank == self.destination_rank

    @property
    def volume(self) -> int:
        """Elements."""
        return self.source.volume


@dataclass(frozen=True, slots=True)
class ReshardPlan:
    """Every copy, in one order that all ranks share.

    Args:
        world_size: number of ranks.
        copies: local and remote ones.
    """

    world_size: int
    copies: tuple[Copy, ...]

    def local(self, rank: int) -> list[Copy]:
        """Copies within a rank."""
        return [copy for copy in self.copies if copy.is_local and copy.source_rank == rank]

    def sent_by(self, rank: int) -> list[Copy]:
        """Copies that leave a rank."""
        return [copy for copy in self.copies if not copy.is_local and copy.source_rank == rank]

    def received_by(self, rank: int) -> list[Copy]:
        """Copies that reach a rank from others."""
        return [copy for copy in self.copies if not copy.is_local and copy.destination_rank == rank]


@dataclass(slots=True)
class _Holders:
    """One rectangle of a Hugging Face tensor and everyone who holds just it."""

    area: Rectangle
    pieces: dict[int, tuple[str, Piece]] = field(default_factory=dict)


def build_plan(
    sources: Sequence[Sequence[ShardSpec]], destinations: Sequence[Sequence[ShardSpec]], ranks_per_node: int
) -> ReshardPlan:
    """Intersects two descriptions of the same model.

    Args:
        sources: the shards of each source rank.
        destinations: the shards of each destination rank; rank ``i`` of both is the same process.
        ranks_per_node: consecutive ranks that share a machine.

    Raises:
        ReshardError: a destination rectangle that no source holds, named with its tensor.
    """
    planner = _Planner(_holders_by_tensor(sources), ranks_per_node)
    copies = tuple(
        copy
        for rank, specs in enumerate(destinations)
        for spec in specs
        for piece in spec.pieces
        for copy in planner.cover(rank, spec.name, piece)
    )
    return ReshardPlan(max(len(sources), len(destinations)), copies)


def _holders_by_tensor(sources: Sequence[Sequence[ShardSpec]]) -> dict[str, list[_Holders]]:
    areas: dict[str, dict[Rectangle, _Holders]] = defaultdict(dict)
    for rank, specs in enumerate(sources):
        for spec in specs:
            for piece in spec.pieces:
                holders = areas[piece.hf_name].setdefault(piece.hf, _Holders(piece.hf))
                # A rank with two copies (a tied head) gives the first.
                holders.pieces.setdefault(rank, (spec.name, piece))
    return {name: list(by_area.values()) for name, by_area in areas.items()}


class _Planner:
    """Chooses sources one destination rectangle after another, keeping the load of each sender."""

    def __init__(self, holders: dict[str, list[_Holders]], ranks_per_node: int) -> None:
        self._holders = holders
        self._ranks_per_node = ranks_per_node
        self._load: dict[int, int] = defaultdict(int)

    def cover(self, rank: int, name: str, piece: Piece) -> list[Copy]:
        """The copies that fill one destination piece, each element once."""
        copies: list[Copy] = []
        missing = [piece.hf]
        holders = self._holders.get(piece.hf_name, [])
        # Sources that overlap only in part are legal, so own memory must come before everything else.
        for holder in sorted(holders, key=lambda holder: rank not in holder.pieces):
            taken = [part for area in missing if (part := area.intersect(holder.area))]
            if not taken:
                continue
            missing = [rest for area in missing for rest in area.minus(holder.area)]
            copies.extend(self._copy(rank, name, piece, holder, part) for part in taken)
            if not missing:
                return copies
        raise ReshardError(
            f"rank {rank} needs {piece.hf_name}{missing[0]} for its parameter {name}, but no rank holds it; "
            "source and destination do not describe the same model"
        )

    def _copy(self, rank: int, name: str, piece: Piece, holder: _Holders, part: Rectangle) -> Copy:
        sender = self._sender(rank, holder)
        if sender != rank:
            self._load[sender] += part.volume
        source_name, source = holder.pieces[sender]
        return Copy(
            source_rank=sender,
            source_name=source_name,
            source=source.to_local(part),
            destination_rank=rank,
            destination_name=name,
            destination=piece.to_local(part),
        )

    def _sender(self, rank: int, holder: _Holders) -> int:
        if rank in holder.pieces:
            return rank
        node = rank // self._ranks_per_node
        near = [other for other in holder.pieces if other // self._ranks_per_node == node]
        return min(near or holder.pieces, key=lambda other: (self._load[other], other))
