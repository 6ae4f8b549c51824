import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cfpo_hybrid.errors import RewardError
from workers.reward.grader import MATH_RECYCLE_BYTES, MATH_VERIFY, START_SECONDS
from workers.reward.grader_pool import MAX_SLOW_FIRST_CALLS, Grade, GraderPool, Status

FUNCTIONS = """
import decimal, fractions, os, subprocess, sys, time

CALLS = 0

def add(left, right):
    return left + right

def count_calls():
    global CALLS
    CALLS += 1
    return CALLS

def misbehave(how):
    if how == "hang":
        time.sleep(1000)
    if how == "stop":
        os.kill(os.getpid(), 19)
    if how == "raise":
        raise ValueError("no such answer")
    if how == "exit":
        sys.exit(3)
    if how == "crash":
        os._exit(7)
    if how == "grandchild":
        print(subprocess.Popen(["sleep", "1000"]).pid, file=open(__file__ + ".pid", "w"), flush=True)
        time.sleep(1000)
    if how == "torch":
        return float("torch" in sys.modules)
    if how == "print":
        print("noise")
        return 0.5
    if how == "numpy":
        import numpy
        return numpy.bool_(True)
    if how == "array":
        import numpy
        return numpy.array(0.25)
    if how == "vector":
        import numpy
        return numpy.array([0.25])
    return {
        "nan": float("nan"), "inf": float("inf"), "huge": 1e300, "none": None, "text": "1.0", "bool": True, "int": 2,
        "fraction": fractions.Fraction(1, 4), "decimal": decimal.Decimal("0.5"), "complex": 1j,
        "dict": {"score": 0.5, "tone": fractions.Fraction(1, 2), "why": "short"},
        "silent dict": {"score": None, "tone": 2}, "no score": {"reward": 1.0}, "bad dict": {"score": 1, "tone": float("inf")},
    }[how]

def echo(value):
    return {"score": 1.0, "same": float(value == {"day": "2024-02-03", "n": [1, 2], "x": 0.5, "raw": "ab", "k": "1/2"})}

FIRST = True

def slow_at_first(seconds):
    global FIRST
    time.sleep(seconds if FIRST else 0)
    FIRST = False
    return 1.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_reward.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def make_pool(file: Path) -> Iterator[Callable[..., GraderPool]]:
    pools = []

    def make(function: str, num_processes: int = 1, timeout_seconds: float = 20.0, **limits: float) -> GraderPool:
        pool = GraderPool(f"{file}:{function}", num_processes=num_processes, timeout_seconds=timeout_seconds, **limits)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_grades_come_in_the_order_of_the_calls(make_pool: Callable[..., GraderPool]):
    with make_pool("add", num_processes=2) as pool:
        assert pool.run([(n, 1) for n in range(100)]) == [Grade(n + 1.0) for n in range(100)]
        assert pool.run([]) == []


def test_what_is_no_finite_number_is_a_failure_with_its_reason(make_pool: Callable[..., GraderPool]):
    pool = make_pool("misbehave")
    hows = [
        "nan",
        "inf",
        "huge",
        "text",
        "complex",
        "vector",
        "no score",
        "bad dict",
        "raise",
        "exit",
        "bool",
        "int",
        "print",
    ]
    found = dict(zip(hows, pool.run([(how,) for how in hows]), strict=True))
    assert (found["bool"], found["int"], found["print"]) == (Grade(1.0), Grade(2.0), Grade(0.5))
    for how, reason in [
        ("nan", "not finite"),
        ("inf", "not finite"),
        ("huge", "returned 1e+300, which is beyond float32"),
        ("complex", "returned 1j, which is no number"),
        ("vector", "which is no number"),
        ("no score", "without 'score'; its keys: 'reward'"),
        ("bad dict", "under 'tone', returned inf, which is not finite"),
        ("text", "returned '1.0'"),
        ("raise", "ValueError: no such answer"),
        ("exit", "SystemExit: 3"),
    ]:
        assert found[how].status is Status.FAILED
        assert found[how].score == 0.0
        assert reason in found[how].detail


def test_numbers_of_other_kinds_none_and_dicts(make_pool: Callable[..., GraderPool]):
    pool = make_pool("misbehave")
    hows = ["numpy", "array", "fraction", "decimal", "none", "dict", "silent dict"]
    found = dict(zip(hows, pool.run([(how,) for how in hows]), strict=True))
    assert [found[how] for how in hows[:5]] == [Grade(1.0), Grade(0.25), Grade(0.25), Grade(0.5), Grade(None)]
    assert found["dict"] == Grade(0.5, others={"tone": 0.5})
    assert found["silent dict"] == Grade(None, others={"tone": 2.0})


def test_a_failure_comes_with_the_users_part_of_the_traceback(make_pool: Callable[..., GraderPool], file: Path):
    (grade,) = make_pool("misbehave").run([("raise",)])
    assert f'File "{file}"' in grade.trace
    assert "in misbehave" in grade.trace
    assert "grader.py" not in grade.trace


def test_values_that_json_has_no_word_for_do_not_end_the_pool(make_pool: Callable[..., GraderPool]):
    pool = make_pool("echo")
    strange = {"day": date(2024, 2, 3), "n": np.array([1, 2]), "x": np.float32(0.5), "raw": b"ab", "k": Fraction(1, 2)}
    endless: list[object] = []
    endless.append(endless)
    grades = pool.run([(strange,), ({(1, 2): "a key"},), (endless,), (object(),), (strange,)])
    assert [grade.score for grade in grades] == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert grades[0].others == grades[4].others == {"same": 1.0}
    for grade in grades[1:3]:
        assert grade.status is Status.FAILED
        assert "cannot be handed over as JSON" in grade.detail


def test_the_first_call_of_a_process_has_a_longer_limit(make_pool: Callable[..., GraderPool]):
    pool = make_pool("slow_at_first", timeout_seconds=0.4, first_timeout_seconds=20.0)
    assert pool.run([(1.0,)] * 3) == [Grade(1.0)] * 3
    # The limit is one of each process, and after some that used it up no process gets more than any call.
    pool = make_pool("slow_at_first", timeout_seconds=0.2, first_timeout_seconds=0.6)
    grades = pool.run([(1000,)] * (MAX_SLOW_FIRST_CALLS + 1))
    assert [grade.detail for grade in grades] == ["no verdict after 0.6 s"] * MAX_SLOW_FIRST_CALLS + [
        "no verdict after 0.2 s"
    ]


def test_a_function_of_other_arguments_is_told_when_it_is_loaded(tmp_path: Path):
    path = tmp_path / "wrapped.py"
    path.write_text("import functools\n@functools.cache\ndef score(response):\n    return 1.0\n")
    pool = GraderPool(f"{path}:score", num_processes=1, timeout_seconds=20.0, num_arguments=4)
    with pytest.raises(RewardError, match=r"score\(response\) is called with 4 arguments .problem, response"):
        pool.wait_until_ready()


def test_a_slow_call_times_out_and_its_process_is_replaced(make_pool: Callable[..., GraderPool]):
    pool = make_pool("misbehave", num_processes=2, timeout_seconds=0.5)
    pool.wait_until_ready()
    before = pool.process_ids
    grades = pool.run([("int",), ("hang",), ("bool",), ("stop",), ("int",)])
    assert [grade.status for grade in grades] == [
        Status.SCORED,
        Status.TIMEOUT,
        Status.SCORED,
        Status.TIMEOUT,
        Status.SCORED,
    ]
    assert len(pool.process_ids) == 2
    assert len(set(before) & set(pool.process_ids)) < 2
    assert pool.run([("int",)] * 3) == [Grade(2.0)] * 3


def test_a_call_that_ends_processes_is_tried_twice_then_fails(make_pool: Callable[..., GraderPool]):
    grades = make_pool("misbehave", num_processes=2).run([("int",), ("crash",), ("int",)])
    assert [grade.status for grade in grades] == [Status.SCORED, Status.FAILED, Status.SCORED]
    assert grades[1].detail == "2 reward processes ended on it, with exit code 7"


def test_idle_processes_killed_from_outside_are_replaced(make_pool: Callable[..., GraderPool]):
    pool = make_pool("count_calls", num_processes=2)
    pool.wait_until_ready()
    for _ in range(2):
        for pid in pool.process_ids:
            os.kill(pid, signal.SIGKILL)
        # Fresh processes count from one: nothing is lost, nothing is scored 0.
        grades = pool.run([()] * 6)
        assert [grade.status for grade in grades] == [Status.SCORED] * 6
        assert sorted(grade.score for grade in grades)[0] == 1.0
        pool.wait_until_ready()


def test_a_busy_process_killed_from_outside_costs_no_verdict(make_pool: Callable[..., GraderPool], tmp_path: Path):
    path = tmp_path / "slow.py"
    path.write_text("import time\ndef score(n):\n    time.sleep(0.4)\n    return n\n")
    with GraderPool(f"{path}:score", num_processes=2, timeout_seconds=20.0) as pool:
        pool.wait_until_ready()
        victim = pool.process_ids[0]
        killer = subprocess.Popen(["bash", "-c", f"sleep 0.6; kill -9 {victim}"])
        grades = pool.run([(n,) for n in range(6)])
        killer.wait()
        assert grades == [Grade(float(n)) for n in range(6)]
        assert victim not in pool.process_ids


def test_close_leaves_no_process_not_even_a_grandchild(make_pool: Callable[..., GraderPool], file: Path):
    pool = make_pool("misbehave", num_processes=2, timeout_seconds=1.0)
    pool.run([("grandchild",)])
    grandchild = int(Path(f"{file}.pid").read_text())
    assert until(lambda: not is_alive(grandchild))
    pids = pool.process_ids
    pool.close()
    pool.close()
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises(RewardError, match="closed"):
        pool.run([("int",)])


def test_a_large_parent_wears_no_process_out():
    ballast = bytearray(b"x") * (
        MATH_RECYCLE_BYTES + 2**20
    )  # counted as a child's peak, until it is a program of its own
    with GraderPool(MATH_VERIFY, num_processes=1, timeout_seconds=60.0) as pool:
        pool.wait_until_ready()
        del ballast
        ids = pool.process_ids
        assert [grade.score for grade in pool.run([("x+1", "1+x")] * 3)] == [1.0] * 3
        assert pool.process_ids == ids


def test_processes_load_no_torch(make_pool: Callable[..., GraderPool]):
    assert make_pool("misbehave").run([("torch",)]) == [Grade(0.0)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_module\ndef score(): ...", "no_such_module"), ("raise SystemExit('bye')", "bye"), ("", "score")],
)
def test_a_function_that_cannot_be_loaded_raises(tmp_path: Path, source: str, reason: str):
    path = tmp_path / "broken.py"
    path.write_text(source)
    pool = GraderPool(f"{path}:score", num_processes=1, timeout_seconds=5.0)
    with pytest.raises(RewardError, match=reason):
        pool.wait_until_ready()
    assert pool.process_ids == []


def test_processes_that_die_while_starting_raise(tmp_path: Path):
    path = tmp_path / "dies.py"
    path.write_text("import os\nos._exit(9)\n")
    pool = GraderPool(f"{path}:score", num_processes=1, timeout_seconds=5.0)
    with pytest.raises(RewardError, match=r"3 reward processes .* exit code 9"):
        pool.run([()])
    assert pool.process_ids == []


def test_a_process_has_a_clock_of_its_own_while_it_loads_and_while_it_works(tmp_path: Path):
    path = tmp_path / "clock.py"
    path.write_text(
        "import signal\n"
        "LOADING = signal.getitimer(signal.ITIMER_REAL)[0]\n"
        "def score(what):\n"
        "    return LOADING if what == 'loading' else signal.getitimer(signal.ITIMER_REAL)[0]\n"
    )
    with GraderPool(f"{path}:score", num_processes=1, timeout_seconds=20.0) as pool:
        loading, working = (grade.score for grade in pool.run([("loading",), ("working",)]))
    # Both end by themselves shortly after their parent would have killed them.
    assert START_SECONDS - 20 < loading < START_SECONDS + 2.1
    assert 0 < working < 22.1


@pytest.mark.slow
def test_processes_end_with_their_parent(tmp_path: Path):
    path = tmp_path / "slow.py"
    marker = tmp_path / "busy"
    path.write_text(f"import time\ndef score(n):\n    open({str(marker)!r}, 'w')\n    time.sleep(n)\n    return 1.0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from workers.reward.grader_pool import GraderPool\n"
        f"pool = GraderPool({str(path)!r} + ':score', num_processes=2, timeout_seconds=1.0)\n"
        "pool.wait_until_ready()\n"
        "print(*pool.process_ids, flush=True)\n"
        "pool.run([(1000,), (0.5,), (0.5,)])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert until(marker.exists)
    parent.kill()
    parent.wait()
    # One sees the closed socket after its call, the other, which hangs, is ended by its own clock.
    assert until(lambda: not any(is_alive(pid) for pid in pids))
