"""What one reshard did on one rank, in bytes and seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PARTS = ("local", "pack", "move", "unpack")
"""Copies at home, into buffers, waiting for other ranks, out of buffers."""


@dataclass(slots=True)
class ReshardStats:
    """Bytes as they arrive, so in the destination's dtype; ``seconds`` is all of the time, ``parts`` are its parts.

    ``bytes_packed`` is less than ``bytes_sent`` where one packed slice has several readers.
    """

    bytes_local: int = 0
    bytes_packed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of a block to a part."""
        begin = time.perf_counter()
        yield
        self.parts[part] += time.perf_counter() - begin

    def add(self, other: "ReshardStats") -> None:
        """Counts another reshard of this rank in."""
        self.bytes_local += other.bytes_local
        self.bytes_packed += other.bytes_packed
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.seconds += other.seconds
        for part, seconds in other.parts.items():
            self.parts[part] += seconds

    def rates(self) -> dict[str, float]:
        """GB/s of copies at home, of packing and unpacking, and (``exchange``) of all that crossing processes took."""
        exchange = self.parts["pack"] + self.parts["move"] + self.parts["unpack"]
        work = {
            "local": (self.bytes_local, self.parts["local"]),
            "pack": (self.bytes_packed, self.parts["pack"]),
            "unpack": (self.bytes_received, self.parts["unpack"]),
            "exchange": (self.bytes_received, exchange),
        }
        return {name: size / seconds / 1e9 if seconds else 0.0 for name, (size, seconds) in work.items()}
