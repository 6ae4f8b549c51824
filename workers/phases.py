"""Which engine of a hybrid worker is awake, and which of its methods may be called then.

    phase        Megatron                          vLLM
    EMPTY        not built                         not built, or of the run before
    ASLEEP       built, in host memory (*)         asleep
    TRAINING     awake                             asleep
    GENERATING   in host memory (*)                awake, with the weights of the last reshard

    (*) with actor.megatron.offload; otherwise it stays on the device.

The driver moves a worker from phase to phase by calling the methods that lead to one; no method does so by the way.
"""

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from cfpo_hybrid.errors import DispatchError


class Phase(enum.Enum):
    """What a worker is ready for."""

    EMPTY = "empty"
    ASLEEP = "asleep"
    TRAINING = "training"
    GENERATING = "generating"


BUILT = (Phase.ASLEEP, Phase.TRAINING, Phase.GENERATING)


@dataclass(frozen=True, slots=True)
class Call:
    """When a method may be called.

    Args:
        during: phases it may be called in.
        then: the phase it leads to; None leaves the phase as it is.
    """

    during: tuple[Phase, ...]
    then: Phase | None = None


CALLS: Mapping[str, Call] = {
    "begin_run": Call(during=tuple(Phase), then=Phase.ASLEEP),
    "wake_training": Call(during=(Phase.ASLEEP, Phase.GENERATING), then=Phase.TRAINING),
    "sync_weights": Call(during=BUILT, then=Phase.GENERATING),
    "generate": Call(during=(Phase.GENERATING,)),
    "compute_log_probs": Call(during=(Phase.TRAINING,)),
    "update_policy": Call(during=(Phase.TRAINING,)),
    "save": Call(during=BUILT),
    "export": Call(during=BUILT),
}
"""Every method of the hybrid worker that the driver calls."""

P = ParamSpec("P")
R = TypeVar("R")


def in_phase(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Holds a method to its line in ``CALLS``, by the worker's ``phase``; a call that raises leaves that as it was.

    Raises:
        DispatchError: the worker is in a phase in which the method may not be called.
    """
    name = method.__name__
    rule = CALLS[name]

    @functools.wraps(method)
    def checked(worker: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        if worker.phase not in rule.during:
            allowed = " or ".join(phase.value for phase in rule.during)
            leading = " or ".join(sorted(other for other, call in CALLS.items() if call.then in rule.during))
            raise DispatchError(
                f"{name} was called while the worker is {worker.phase.value}; it may be called while {allowed}: "
                f"call {leading} first"
            )
        answer = method(worker, *args, **kwargs)
        worker.phase = rule.then or worker.phase
        return answer

    return checked
