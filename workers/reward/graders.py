"""The graders themselves, which run in the killable processes: math-verify and the user's own function.

This module and what it imports stay free of torch and of the project's other packages: a process is ready sooner.
"""

import importlib.util
import logging
import math
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any

MATH_VERIFY = "math-verify"
"""The name of the built-in grader."""
MATH_MEMORY_BYTES = 4 * 1024**3
"""Address space of a math-verify process: ``10^{10^{10}}`` would fill the machine before its time is up."""
MATH_RECYCLE_BYTES = 1024**3
"""A math-verify process that has grown beyond this is replaced, before it meets its limit."""
PARSED_ANSWERS = 256
"""Parsed answers that a math-verify process remembers: the responses to one problem share the reference."""

WARM_UP = (
    (r"(-\infty,3]", r"x\le 3"),
    (r"\frac{\pi}{3}+x^2", r"x^{2}-\pi/3"),
    (r"2\sqrt{3}", "1,2"),
    ("(1,-2)", "(x+4)(x-1)"),
)
"""Compared before a process says that it is ready: the parser builds its tables as it meets new notation."""

Grader = Callable[..., float]


def load_grader(name: str) -> Grader:
    """The grader of that name: ``"math-verify"`` or ``"/path/to/file.py:function"``."""
    if name == MATH_VERIFY:
        return _math_verify_grader()
    path, _, function = name.rpartition(":")
    return _checked(_user_function(Path(path), function), function)


def is_worn_out(name: str) -> bool:
    """Whether the process has grown so much that it should end."""
    # Not getrusage: its peak includes that of the parent, whose memory a child has until it becomes a program of its own.
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return name == MATH_VERIFY and resident_pages * resource.getpagesize() > MATH_RECYCLE_BYTES


def _math_verify_grader() -> Grader:
    # Imported here: a process for a user's function does not need it.
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY_BYTES, MATH_MEMORY_BYTES))
    for package in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(package).setLevel(logging.CRITICAL)

    @lru_cache(maxsize=PARSED_ANSWERS)
    def parsed(answer: str) -> list[Any]:
        # No timeout of its own: that is an alarm signal, which the parent's kill makes needless.
        return parse(rf"\boxed{{{answer}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    def grade(truth: str, answer: str) -> float:
        errors: list[Exception] = []
        for expected, given in product(parsed(truth), parsed(answer)):
            try:
                # An interval and an inequality are one answer in two spellings, whichever side is which.
                if verify(expected, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True):
                    return 1.0
            except Exception as error:  # sympy raises anything; another pair of readings may still agree
                errors.append(error)
        if errors:
            raise errors[0]
        return 0.0

    for truth, answer in WARM_UP:
        grade(truth, answer)
    return grade


def _user_function(path: Path, name: str) -> Callable[..., object]:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return vars(module)[name]


def _checked(function: Callable[..., object], name: str) -> Grader:
    def grade(*arguments: object) -> float:
        score = function(*arguments)
        if not isinstance(score, Real):
            raise TypeError(f"{name} returned {score!r:.100}, which is no number")
        if not math.isfinite(score):
            raise ValueError(f"{name} returned {score!r}, which is not finite")
        return float(score)

    return grade
