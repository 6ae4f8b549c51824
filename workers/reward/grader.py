"""A grader process: it loads its grader, math-verify or the user's own function, says so, and answers calls one by one.

A call is a line of JSON (the arguments), the answer another one. The process ends when its parent closes the socket.
This module imports neither torch nor the project's other packages: a process is ready sooner.
"""

import importlib.util
import json
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
"""Longest time from the start of a process to the end of its imports."""
ORPHAN_SECONDS = 2.0
"""After this much more than its time a process ends itself: the parent that should have killed it is gone."""
DETAIL_CHARS = 500
MATH_VERIFY = "math-verify"
"""The name of the built-in grader."""
MATH_MEMORY_BYTES = 4 * 1024**3
"""Address space of a math-verify process: ``10^{10^{10}}`` would fill the machine before its time is up."""
MATH_RECYCLE_BYTES = 1024**3
"""A math-verify process that has grown beyond this is replaced, before it meets its limit."""
PARSED_ANSWERS = 256
"""Parsed answers that a math-verify process remembers: the responses to one problem share the reference."""
NUMBER_TOLERANCE = 1e-3
"""Largest difference of numbers that math-verify takes for equal, as a share of the larger one."""
WARM_UP = (
    (r"(-\infty,3]", r"x\le 3"),
    (r"\frac{\pi}{3}+x^2", r"x^{2}-\pi/3"),
    (r"2\sqrt{3}", "1,2"),
    ("(1,-2)", "(x+4)(x-1)"),
)
"""Compared before a process says that it is ready: the parser builds its tables as it meets new notation."""

Grader = Callable[..., float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One line from a grader process.

    Args:
        score: of a call that succeeded.
        error: of a call, or of loading, that failed.
        is_last: the process ends after it.
    """

    score: float = 0.0
    error: str = ""
    is_last: bool = False


def serve(descriptor: int, grader_name: str, timeout_seconds: float) -> None:
    """Serves calls until the parent closes its end.

    Args:
        descriptor: the inherited socket.
        grader_name: as ``GraderPool`` takes it.
        timeout_seconds: after which the parent kills this process.
    """
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    try:
        with _limited(START_SECONDS):
            grader = _load(grader_name)
    except (Exception, SystemExit) as error:
        _send(channel, Reply(error=_describe(error)))
        return
    _send(channel, Reply())
    with channel.makefile("rb") as calls:
        for line in calls:
            with _limited(timeout_seconds):
                reply = _answer(grader, json.loads(line))
            reply = replace(reply, is_last=_is_worn_out(grader_name))
            _send(channel, reply)
            if reply.is_last:
                return


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends the process if the block takes longer, by a signal that its code cannot have kept for itself before."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(grader: Grader, arguments: list[object]) -> Reply:
    try:
        return Reply(score=grader(*arguments))
    except (Exception, SystemExit) as error:
        return Reply(error=_describe(error))


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS]


def _send(channel: socket.socket, reply: Reply) -> None:
    channel.sendall(json.dumps(asdict(reply)).encode() + b"\n")


def _load(name: str) -> Grader:
    """The grader of that name: ``"math-verify"`` or ``"/path/to/file.py:function"``."""
    if name == MATH_VERIFY:
        return _math_verify_grader()
    path, _, function = name.rpartition(":")
    return _user_function_grader(Path(path), function)


def _is_worn_out(name: str) -> bool:
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
                if verify(
                    expected, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
                ) and _near_to_their_size(expected, given):
                    return 1.0
            except Exception as error:  # sympy raises anything; another pair of readings may still agree
                errors.append(error)
        if errors:
            raise errors[0]
        return 0.0

    for truth, answer in WARM_UP:
        grade(truth, answer)
    return grade


def _near_to_their_size(expected: Any, given: Any) -> bool:
    """Whether two numbers that are equal to six places are so beside their own size too: e^-40 is not e^-41."""
    if not all(getattr(one, "is_number", False) and getattr(one, "is_finite", False) for one in (expected, given)):
        return True
    left, right = complex(expected.evalf()), complex(given.evalf())
    return abs(left - right) <= NUMBER_TOLERANCE * max(abs(left), abs(right))


def _user_function_grader(path: Path, name: str) -> Grader:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = vars(module)[name]

    def grade(*arguments: object) -> float:
        score = function(*arguments)
        if not isinstance(score, Real):
            raise TypeError(f"{name} returned {score!r:.100}, which is no number")
        if not math.isfinite(score):
            raise ValueError(f"{name} returned {score!r}, which is not finite")
        return float(score)

    return grade
