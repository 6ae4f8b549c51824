"""Names of validation sets and of their metrics: ``val/accuracy`` of all problems, ``val/math500/accuracy`` of a set.

Imports nothing heavy: the command line reads set names.
"""

import re
from collections.abc import Iterable

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a set may be called: the name is part of a metric's and of a dotted key."""

_METRICS = """
    accuracy accuracy_stderr reward reward_stderr response_length truncated_share overlong problems samples source
"""
METRICS_OF_A_SET = frozenset(_METRICS.split())
"""What the names of a set's figures begin with: no set may be called so, or ``val/reward/tone`` might mean two things."""

_RESULT = re.compile(r"val/(?:(?P<set>[^/]+)/)?(?P<figure>accuracy|reward)")


def results_by_set(names: Iterable[str]) -> dict[str, str]:
    """The metric among these that each validation set is judged by: its accuracy, or where it has none its reward.

    Example: ``{"": "val/accuracy", "math500": "val/math500/accuracy"}``, "" being all problems, which come first.
    """
    found: dict[str, str] = {}
    for name in names:
        match = _RESULT.fullmatch(name)
        set_name = match["set"] or "" if match else ""
        if match and set_name not in METRICS_OF_A_SET and (match["figure"] == "accuracy" or set_name not in found):
            found[set_name] = name
    return dict(sorted(found.items(), key=lambda item: item[0] != ""))
