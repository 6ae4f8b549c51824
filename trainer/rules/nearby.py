"""Legal values near one that does not fit."""

from collections.abc import Iterable


def divisors(number: int) -> list[int]:
    """Every divisor, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def nearest_multiples(number: int, step: int) -> list[int]:
    """The multiples of ``step`` just below and just above, without 0: 100 and 16 give 96 and 112."""
    below = number // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def listing(values: Iterable[int]) -> str:
    """``1, 2, 4`` and so on."""
    return ", ".join(map(str, values))
