"""An interrupt that lets a run end at a place from which it can go on."""

import os
import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what cluster managers send some time before they kill."""

ASKED = b"\ninterrupted: the run ends after this step and saves its state; a second interrupt ends it at once\n"


class Interrupt:
    """While entered, the first interrupt is kept for whoever asks, and the second one raises; a context manager.

    Signals reach the main thread of a process alone: elsewhere, and where it is off, interrupts do what they did before.

    Args:
        on: whether interrupts are kept at all.
    """

    def __init__(self, *, on: bool) -> None:
        self.asked = False
        self._on = on and threading.current_thread() is threading.main_thread()
        self._before = {}

    def __enter__(self) -> Self:
        if self._on:
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, ASKED)  # a signal may come in the middle of a print
