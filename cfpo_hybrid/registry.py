"""Names to entries: a duplicate raises, an unknown name is answered with the nearest one."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from cfpo_hybrid.errors import RegistryError

Entry = TypeVar("Entry")


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


class Registry(Generic[Entry]):
    """A mapping from names to entries of one kind.

    Args:
        kind: what the entries are, as messages call them, e.g. ``"policy loss"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Adds an entry.

        Raises:
            RegistryError: the name is taken.
        """
        if name in self._entries:
            raise RegistryError(f"{self.kind} '{name}' is registered twice; choose another name for the second one")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            RegistryError: no such name; the message lists what exists and the nearest name.
        """
        if name not in self._entries:
            nearest = nearest_name(name, self._entries)
            hint = f"; did you mean '{nearest}'?" if nearest else ""
            raise RegistryError(f"unknown {self.kind} '{name}'; known: {', '.join(sorted(self._entries))}{hint}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)
