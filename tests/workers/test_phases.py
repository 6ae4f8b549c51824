"""The table of phases: what may be called when, and where it leads."""

import sys
from types import SimpleNamespace

import pytest

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.single_controller.dispatch import WorkerMethod
from workers.hybrid_worker import HybridWorker
from workers.phases import CALLS, Phase

TO = {
    Phase.ASLEEP: ["begin_run"],
    Phase.TRAINING: ["begin_run", "wake_training"],
    Phase.GENERATING: ["begin_run", "sync_weights"],
}
"""The calls that lead to each phase, from a worker that was just made."""


@pytest.fixture(autouse=True)
def without_engines(monkeypatch):
    """Megatron-core and vLLM take ten seconds to import, and no test here needs one."""
    monkeypatch.setitem(sys.modules, "workers.engines", None)


def worker_in(phase: Phase) -> HybridWorker:
    worker = HybridWorker(SimpleNamespace(rank=0))  # type: ignore[arg-type]
    worker.phase = phase
    return worker


def call(worker: HybridWorker, method: str) -> None:
    """Runs a method as far as the table lets it: without engines, what is let through breaks on a missing part."""
    try:
        getattr(worker, method)(*[None] * 2)
    except (AttributeError, AssertionError, ImportError, TypeError):
        return


def test_the_table_knows_every_method_that_the_driver_calls():
    dispatched = {name for name, method in vars(HybridWorker).items() if isinstance(method, WorkerMethod)}
    assert dispatched == set(CALLS)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("method", CALLS)
def test_a_call_outside_its_phases_is_refused_with_what_to_call_first(method: str, phase: Phase):
    worker = worker_in(phase)
    if phase in CALLS[method].during:
        call(worker, method)
        return
    with pytest.raises(
        DispatchError, match=f"{method} was called while the worker is {phase.value}; .*: call"
    ) as error:
        getattr(worker, method)(None, None)
    first = str(error.value).rpartition(": call ")[2].removesuffix(" first").split(" or ")
    assert any(CALLS[name].then in CALLS[method].during for name in first)
    assert worker.phase is phase


@pytest.mark.parametrize("method", CALLS)
def test_a_call_that_raises_leaves_the_phase(method: str):
    for phase in CALLS[method].during:
        worker = worker_in(phase)
        call(worker, method)
        assert worker.phase is phase


@pytest.mark.parametrize("phase", TO)
def test_every_phase_can_be_reached(phase: Phase):
    now = Phase.EMPTY
    for method in TO[phase]:
        assert now in CALLS[method].during
        now = CALLS[method].then
    assert now is phase
