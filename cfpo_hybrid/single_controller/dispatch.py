"""Worker methods and how their arguments and results travel: a mode for each method, stated where it is written.

    class HybridWorker:
        @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
        def generate(self, batch: DataProto, sampling: SamplingSettings) -> DataProto: ...

    responses = group.run(HybridWorker.generate, batch, sampling)      # typed, and found by grep

| mode | runs on | batch arguments | result on the driver |
|---|---|---|---|
| SPLIT_BY_DP | every rank | rows split over dp, tp/pp/cp peers get the same | one rank of each replica: see below |
| BROADCAST | every rank | whole, the same for all | rank 0's |
| RANK_ZERO | rank 0 | whole | rank 0's |
| ALL | every rank | whole, the same for all | a list, by rank |

SPLIT_BY_DP puts batches that the replicas return back into the driver's row order (``meta["replicas"]`` lists what each
replica wrote into its metadata); any other result comes as a list, one a replica. A batch whose response lengths are
known is split by tokens, each mini-batch evenly by itself, the responses of one prompt together unless that makes the
slowest replica slower, so that the prompt is computed once; a batch that has yet to be generated is cut into contiguous
runs of rows, so that the responses of one prompt share a replica's prefix cache.
"""

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from cfpo_hybrid.protocol import DataProto

Params = ParamSpec("Params")
Result = TypeVar("Result")
Collected = TypeVar("Collected", covariant=True)


class Dispatch(enum.Enum):
    """The modes; the module's docstring says what each does."""

    BROADCAST = "broadcast"
    SPLIT_BY_DP = "split_by_dp"
    RANK_ZERO = "rank_zero"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class DispatchRule:
    """A mode, and the name of the group's layout whose dp it splits over."""

    mode: Dispatch
    layout: str


class WorkerMethod(Generic[Params, Result, Collected]):
    """A method with its dispatch rule; on an instance it is the plain bound method.

    Its type carries three things: the parameters, what the method returns on a worker (``Result``), and what a group
    returns on the driver (``Collected``).
    """

    def __init__(self, function: Callable[Concatenate[Any, Params], Result], rule: DispatchRule) -> None:
        self.function, self.rule = function, rule
        self.name = function.__name__
        self.owner: type | None = None
        functools.update_wrapper(self, function)

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    @overload
    def __get__(self, instance: None, owner: type) -> "WorkerMethod[Params, Result, Collected]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[Params, Result]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else functools.partial(self.function, instance)

    def __call__(self, worker: Any, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Runs the method on a worker, as an unbound method does."""
        return self.function(worker, *args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.owner.__name__ if self.owner else '?'}.{self.name}"


class _SplitDecorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, Params], DataProto], /
    ) -> WorkerMethod[Params, DataProto, DataProto]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, Params], Result], /
    ) -> WorkerMethod[Params, Result, list[Result]]: ...


class _OneDecorator(Protocol):
    def __call__(
        self, function: Callable[Concatenate[Any, Params], Result], /
    ) -> WorkerMethod[Params, Result, Result]: ...


class _AllDecorator(Protocol):
    def __call__(
        self, function: Callable[Concatenate[Any, Params], Result], /
    ) -> WorkerMethod[Params, Result, list[Result]]: ...


@overload
def dispatch(mode: Literal[Dispatch.SPLIT_BY_DP], layout: str = "train") -> _SplitDecorator: ...
@overload
def dispatch(mode: Literal[Dispatch.ALL], layout: str = "train") -> _AllDecorator: ...
@overload
def dispatch(mode: Literal[Dispatch.BROADCAST, Dispatch.RANK_ZERO], layout: str = "train") -> _OneDecorator: ...
def dispatch(mode: Dispatch, layout: str = "train") -> Any:
    """Declares how a group runs the decorated worker method.

    Args:
        mode: one of :class:`Dispatch`; there is no default.
        layout: which of the group's layouts SPLIT_BY_DP splits over, e.g. ``"train"`` or ``"rollout"``.
    """
    return functools.partial(WorkerMethod, rule=DispatchRule(mode, layout))
