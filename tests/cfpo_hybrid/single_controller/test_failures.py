"""Which of several failures is told first."""

import pickle

from cfpo_hybrid.single_controller.failures import Failure, root_failure, worker_error


def failure(rank: int, summary: str, *, time: float = 0.0, died: bool = False) -> Failure:
    return Failure(rank=rank, method="step", died=died, time=time, summary=summary, cause=f"traceback of {summary}")


def test_a_death_comes_before_the_echo_that_was_seen_earlier():
    echo = failure(0, "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer", time=1.0)
    death = failure(1, "the process died", died=True, time=2.0)
    assert root_failure([echo, death]) is death


def test_an_error_comes_before_the_echo_that_was_seen_earlier():
    echo = failure(0, "DistBackendError: NCCL error", time=1.0)
    error = failure(3, "ValueError: bad", time=2.0)
    assert root_failure([echo, error]) is error and not error.is_consequence


def test_engines_that_differ_are_no_echo():
    assert not failure(0, "ReshardError: after the reshard of policy version 3 vLLM and Megatron differ").is_consequence


def test_the_earliest_of_equals_comes_first():
    assert root_failure([failure(0, "ValueError", time=2.0), failure(1, "ValueError", time=1.0)]).rank == 1


def test_the_error_tells_the_root_in_full_and_the_others_in_a_line():
    error = worker_error("hybrid", [failure(0, "NCCL error"), failure(2, "ValueError: bad")], [1, 3])
    text = str(error)
    assert text.startswith("worker hybrid[rank 2] failed in step:\ntraceback of ValueError: bad")
    assert "rank 0 in step: NCCL error" in text and "still running: ranks 1, 3" in text
    assert str(pickle.loads(pickle.dumps(error))) == text
