"""Rank <-> (dp, pp, cp, tp) coordinates of one engine. Pure: no process group is touched.

Ranks are the engine's own; a worker group says which worker has which (``placement``). They are laid out as
Megatron-core's default order "tp-cp-ep-dp-pp" does: tensor-parallel peers are consecutive, then context, then data, and
pipeline stages are farthest apart. With tp=2, dp=2, pp=2 the eight ranks are

    pp=0: dp=0 -> ranks 0 1, dp=1 -> ranks 2 3        pp=1: dp=0 -> ranks 4 5, dp=1 -> ranks 6 7

Experts are not cut by tp: ``ep`` is a second division of the same ranks of a stage, over tp, cp and dp alike. With ep=2
above, ranks 0 2 4 6 have the first half of their stage's experts and 1 3 5 7 the second; with ep=4 each has a quarter.
"""

from dataclasses import dataclass

from cfpo_hybrid.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A rank's place on each axis of a layout."""

    dp: int
    pp: int
    cp: int
    tp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """Sizes of the axes over which one engine's processes are laid out.

    Example: ``ParallelLayout.of_world(4, tp=2)`` has dp=2; rank 3 sits at (dp=1, pp=0, cp=0, tp=1).
    """

    dp: int = 1
    pp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "pp", "cp", "tp", "ep"):
            if getattr(self, axis) < 1:
                raise ConfigError(f"{axis}={getattr(self, axis)} is no size of a parallel axis; it must be at least 1")
        stage = self.dp * self.cp * self.tp
        if stage % self.ep:
            legal = ", ".join(str(size) for size in range(1, stage + 1) if stage % size == 0)
            raise ConfigError(
                f"the experts of a stage cannot be spread over ep={self.ep} of its dp={self.dp} x cp={self.cp} x "
                f"tp={self.tp} = {stage} ranks; ep can be {legal}"
            )

    @classmethod
    def of_world(cls, world_size: int, *, tp: int = 1, pp: int = 1, cp: int = 1, ep: int = 1) -> "ParallelLayout":
        """The layout whose dp fills the world.

        Raises:
            ConfigError: tp * pp * cp does not divide ``world_size``, or ep not a stage's ranks.
        """
        model_size = tp * pp * cp
        if world_size % model_size:
            legal = ", ".join(str(model_size * factor) for factor in range(1, 5))
            raise ConfigError(
                f"{world_size} workers cannot be divided into model replicas of tp={tp} x pp={pp} x cp={cp} = "
                f"{model_size} ranks; use {legal}, ... workers or smaller tp, pp or cp"
            )
        return cls(dp=world_size // model_size, pp=pp, cp=cp, tp=tp, ep=ep)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp * self.pp * self.cp * self.tp

    def coordinate(self, rank: int) -> Coordinate:
        """Where ``rank`` sits on each axis."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside a world of {self.world_size}")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinate(dp=dp, pp=pp, cp=cp, tp=tp)

    def rank(self, coordinate: Coordinate) -> int:
        """The rank at a coordinate; inverse of :meth:`coordinate`."""
        return ((coordinate.pp * self.dp + coordinate.dp) * self.cp + coordinate.cp) * self.tp + coordinate.tp

    def expert_rank(self, coordinate: Coordinate) -> int:
        """Which share of its stage's experts the rank at a coordinate holds, of ``ep``."""
        return self.rank(coordinate) % self.ep

    def output_rank_of_dp(self, dp: int) -> int:
        """The rank that answers for a replica: the last pipeline stage's first tensor-parallel rank."""
        return self.rank(Coordinate(dp=dp, pp=self.pp - 1, cp=0, tp=0))
