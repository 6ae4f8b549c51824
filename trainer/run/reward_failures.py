"""What becomes of a reward function that fails: it is told once, kept in the run directory, and may end the run."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import RewardError
from trainer.run.files import write_atomically

logger = logging.getLogger(__name__)


class RewardFailures:
    """Looks at what the reward workers say of failed calls.

    Args:
        file: where the first failure goes with its traceback; None keeps none.
        tell: is told of the first failure of each reward.
        all_failed_action: ``reward.all_failed_action``.
    """

    def __init__(
        self, file: Path | None = None, tell: Callable[[str], None] = logger.warning, all_failed_action: str = "stop"
    ) -> None:
        self._file, self._tell, self._action = file, tell, all_failed_action
        self._told: set[str] = set()

    def look(self, replicas: Iterable[Mapping[str, Any]]) -> None:
        """Tells of failures in the metadata of scored batches, which together are those of a step or of a validation.

        Raises:
            RewardError: every call of a function failed, and the action is "stop".
        """
        found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for meta in replicas:
            for label, failures in meta.get("failures", {}).items():
                found[label].append(failures)
        for label, parts in found.items():
            calls, failed = sum(part[0] for part in parts), sum(part[1] for part in parts)
            first = next((text for _, _, text in parts if text), "")
            if failed:
                self._look_at(label, calls, failed, first)

    def _look_at(self, label: str, calls: int, failed: int, first: str) -> None:
        kept = f"; {self._file} has it with its arguments and traceback" if self._file else ""
        reason = first.partition("\n")[0]
        if label not in self._told:
            self._told.add(label)
            if self._file:
                old = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
                write_atomically(self._file, f"{old}{first}\n\n")
            self._tell(f"{failed} of {calls} responses score 0 because the reward function failed: {reason}{kept}")
        if failed == calls and self._action == "stop":
            raise RewardError(
                f"the reward function failed on all of {calls} responses: {reason}{kept}. Mend it, or set "
                f"reward.all_failed_action=warn to go on with rewards of 0"
            )
