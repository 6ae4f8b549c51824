"""One mistake in a configuration: what it is about and what to say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cfpo_hybrid.registry import nearest_name


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
    """No problem when ``value`` is allowed; otherwise one that lists what is, nearest first named."""
    names = tuple(allowed)
    if value in names:
        return []
    nearest = nearest_name(value, names)
    hint = f"; did you mean '{nearest}'?" if nearest else ""
    return [Problem((key,), f"{key}='{value}' is unknown; known: {', '.join(names)}{hint}")]
