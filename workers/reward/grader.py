"""A grader process: it loads its grader, math-verify or the user's own function, says so, and answers calls one by one.

A call is a line of JSON (the arguments), the answer another one. The process ends when its parent closes the socket.
This module imports neither torch nor the project's other packages: a process is ready sooner.
"""

import importlib.util
import inspect
import json
import logging
import math
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
"""Longest time from the start of a process to the end of its imports."""
ORPHAN_SECONDS = 2.0
"""After this much more than its time a process ends itself: the parent that should have killed it is gone."""
DETAIL_CHARS = 500
TRACEBACK_CHARS = 8000
LARGEST = 3.4e38
"""Rewards are float32."""
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

ARGUMENTS = ("problem", "response", "ground_truth", "extra")
"""What a user's function is called with, in this order."""

Score = tuple[float | None, dict[str, float]]
"""A reward, or None for no opinion, and other numbers to log."""
Grader = Callable[..., Score]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One line from a grader process.

    Args:
        score: of a call that succeeded; None where it has no opinion.
        details: other numbers that it returned.
        error: of a call, or of loading, that failed.
        trace: where it failed.
        is_last: the process ends after it.
    """

    score: float | None = 0.0
    details: dict[str, float] = field(default_factory=dict)
    error: str = ""
    trace: str = ""
    is_last: bool = False


def serve(
    descriptor: int, grader_name: str, timeout_seconds: float, first_timeout_seconds: float, num_arguments: int | None
) -> None:
    """Serves calls until the parent closes its end.

    Args:
        descriptor: the inherited socket.
        grader_name: as ``GraderPool`` takes it.
        timeout_seconds: after which the parent kills this process.
        first_timeout_seconds: the same for the first call.
        num_arguments: with which a user's function must be callable; None asks for nothing.
    """
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    try:
        with _limited(START_SECONDS):
            grader = _load(grader_name, num_arguments)
    except (Exception, SystemExit) as error:
        _send(channel, Reply(error=_describe(error)))
        return
    _send(channel, Reply())
    with channel.makefile("rb") as calls:
        for number, line in enumerate(calls):
            with _limited(timeout_seconds if number else max(first_timeout_seconds, timeout_seconds)):
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
        score, details = grader(*arguments)
        return Reply(score=score, details=details)
    except (Exception, SystemExit) as error:
        return Reply(error=_describe(error), trace=_trace(error))


def _trace(error: BaseException) -> str:
    """The traceback without the frames of this file: the user's own code remains."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return "".join(traceback.format_list(frames))[-TRACEBACK_CHARS:]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS]


def _send(channel: socket.socket, reply: Reply) -> None:
    channel.sendall(json.dumps(asdict(reply)).encode() + b"\n")


def _load(name: str, num_arguments: int | None) -> Grader:
    """The grader of that name: ``"math-verify"`` or ``"/path/to/file.py:function"``."""
    if name == MATH_VERIFY:
        return _math_verify_grader()
    path, _, function = name.rpartition(":")
    return _user_function_grader(Path(path), function, num_arguments)


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

    def grade(truth: str, answer: str) -> Score:
        errors: list[Exception] = []
        for expected, given in product(parsed(truth), parsed(answer)):
            try:
                # An interval and an inequality are one answer in two spellings, whichever side is which.
                if verify(
                    expected, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
                ) and _near_to_their_size(expected, given):
                    return 1.0, {}
            except Exception as error:  # sympy raises anything; another pair of readings may still agree
                errors.append(error)
        if errors:
            raise errors[0]
        return 0.0, {}

    for truth, answer in WARM_UP:
        grade(truth, answer)
    return grade


def _near_to_their_size(expected: Any, given: Any) -> bool:
    """Whether two numbers that are equal to six places are so beside their own size too: e^-40 is not e^-41."""
    if not all(getattr(one, "is_number", False) and getattr(one, "is_finite", False) for one in (expected, given)):
        return True
    left, right = complex(expected.evalf()), complex(given.evalf())
    return abs(left - right) <= NUMBER_TOLERANCE * max(abs(left), abs(right))


def _user_function_grader(path: Path, name: str, num_arguments: int | None) -> Grader:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = vars(module)[name]
    if num_arguments is not None:
        _check_signature(function, name, num_arguments)

    def grade(*arguments: object) -> Score:
        return read_score(function(*arguments), name)

    return grade


def _check_signature(function: Any, name: str, num_arguments: int) -> None:
    if not callable(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} is {function!r:.100}, which is no function that returns a number")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some built-in functions
        return
    try:
        signature.bind(*[None] * num_arguments)
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} is called with {num_arguments} arguments ({', '.join(ARGUMENTS)}): {error}"
        ) from error


def read_score(returned: object, name: str) -> Score:
    """The reward in what a user's function returned: a number, None, or a dict with one under "score".

    Numbers of numpy, torch and ``fractions`` are numbers too, as are arrays without an axis.

    Raises:
        TypeError: it is something else.
        ValueError: it is not finite, or too large for float32.
    """
    if not isinstance(returned, Mapping):
        return _number(returned, name), {}
    if "score" not in returned:
        keys = ", ".join(map(repr, returned))[:DETAIL_CHARS]
        raise TypeError(f"{name} returned a dict without 'score'; its keys: {keys or 'none'}")
    others = {str(key): value for key, value in returned.items() if key != "score" and _is_number(value)}
    details = {key: _number(value, f"{name}, under '{key}',") for key, value in others.items()}
    return _number(returned["score"], name), {key: value for key, value in details.items() if value is not None}


def _is_number(value: object) -> bool:
    is_real = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    return is_real and getattr(value, "ndim", 0) == 0


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise TypeError(f"{name} returned {value!r:.100}, which is no number")
    number = float(value)  # pyright: ignore[reportArgumentType]
    if not math.isfinite(number):
        raise ValueError(f"{name} returned {value!r:.100}, which is not finite")
    if abs(number) > LARGEST:
        raise ValueError(f"{name} returned {value!r:.100}, which is beyond float32; divide it by a constant")
    return number
