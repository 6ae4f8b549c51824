"""One mistake in a configuration: what it is about and what to say, with the legal values nearby."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cfpo_hybrid.registry import did_you_mean
from trainer.config.foreign import name_hint


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake.

    Args:
        keys: the settings it is about, e.g. ``("data.train_batch_size", "algorithm.batch_ratio")``.
        message: what is wrong, the value, what is allowed, what to do.
    """

    keys: tuple[str, ...]
    message: str

    def located(self, origins: Mapping[str, str]) -> str:
        """The message, and where the settings it is about were written."""
        places = list(dict.fromkeys(origins[key] for key in self.keys if key in origins))
        return f"{self.message} [{', '.join(places)}]" if places else self.message


def with_section(section: str, argument: str, message: str) -> str:
    """The library's message about one of its arguments, which it begins with, under the key of a configuration's section.

    Without an argument the message begins with whose arguments are meant.
    """
    return f"{section}.{message}" if argument else f"{section} of {message}"


def one_of(key: str, value: str, allowed: Iterable[str]) -> list[Problem]:
    """No problem when ``value`` is allowed; otherwise one that lists what is, and names what is meant."""
    names = tuple(allowed)
    if value in names:
        return []
    hint = name_hint(key, value) or did_you_mean(value, names)
    return [Problem((key,), f"{key}='{value}' is unknown; known: {', '.join(names)}{hint}")]


def divisors(number: int) -> list[int]:
    """Every divisor, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def nearest_multiples(number: int, step: int) -> list[int]:
    """The multiples of ``step`` just below and just above, without 0: 100 and 16 give 96 and 112."""
    below = number // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def count(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``, ``2 processes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"


def listing(values: Iterable[int]) -> str:
    """``1, 2, 4`` and so on."""
    return ", ".join(map(str, values))
