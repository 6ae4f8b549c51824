"""Interleaved timings and peak memory; plain Python, so that the peers' interpreters can import it too."""

import statistics
import time
from collections.abc import Callable


def medians(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that all meet the same state of the machine.

    The first ``warm_up`` rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def memory_growth(call: Callable[[], object], repeats: int = 3) -> float:
    """Bytes by which this process's resident memory peaks over its start while ``call`` repeats."""
    before = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    for _ in range(repeats):
        call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
