"""What becomes of a reward function that fails, or goes beyond its bounds.

It is told once and kept in the run directory; a function that always fails may end the run.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import RewardError
from trainer.run.files import write_atomically

logger = logging.getLogger(__name__)


class RewardFailures:
    """Looks at what the reward workers say of failed calls and of rewards beyond their bounds.

    Args:
        file: where the first failure goes with its traceback, and the first reward beyond its bounds; None keeps none.
        tell: is told of the first of either, for each reward.
        all_failed_action: ``reward.all_failed_action``.
    """

    def __init__(
        self, file: Path | None = None, tell: Callable[[str], None] = logger.warning, all_failed_action: str = "stop"
    ) -> None:
        self._file, self._tell, self._action = file, tell, all_failed_action
        self._told: set[tuple[str, str]] = set()

    def look(self, replicas: Iterable[Mapping[str, Any]]) -> None:
        """Tells of failures in the metadata of scored batches, which together are those of a step or of a validation.

        Raises:
            RewardError: every call of a function failed, and the action is "stop".
        """
        replicas = list(replicas)
        for label, (calls, clipped, first) in _added(replicas, "clipped").items():
            if clipped:
                self._tell_once(label, "clipped", f"{clipped} of {calls} rewards lay beyond their bounds", first)
        for label, (calls, failed, first) in _added(replicas, "failures").items():
            if failed:
                self._look_at(label, calls, failed, first)

    def _look_at(self, label: str, calls: int, failed: int, first: str) -> None:
        what = f"{failed} of {calls} responses score 0 because the reward function failed"
        self._tell_once(label, "failures", what, first)
        if failed == calls and self._action == "stop":
            raise RewardError(
                f"the reward function failed on all of {calls} responses: {self._short(first)}. Mend it, or set "
                f"reward.all_failed_action=warn to go on with rewards of 0"
            )

    def _tell_once(self, label: str, kind: str, what: str, first: str) -> None:
        if (label, kind) in self._told:
            return
        self._told.add((label, kind))
        if self._file:
            old = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
            write_atomically(self._file, f"{old}{first}\n\n")
        self._tell(f"{what}: {self._short(first)}")

    def _short(self, first: str) -> str:
        kept = f"; {self._file} has it with its arguments" if self._file else ""
        return first.partition("\n")[0] + kept


def _added(replicas: Iterable[Mapping[str, Any]], kind: str) -> dict[str, tuple[int, int, str]]:
    """By reward: calls and how many of them there were, over all replicas, and the first one."""
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for meta in replicas:
        for label, part in meta.get(kind, {}).items():
            found[label].append(part)
    return {
        label: (
            sum(calls for calls, _, _ in parts),
            sum(number for _, number, _ in parts),
            next((text for _, _, text in parts if text), ""),
        )
        for label, parts in found.items()
    }
