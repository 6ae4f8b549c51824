"""Worker methods and how their arguments and results travel: a mode for each method, stated where it is written.

    class HybridWorker:
        @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
        def generate(self, batch: DataProto, sampling: SamplingSettings) -> DataProto: ...

    responses = group.run(HybridWorker.generate, batch, sampling)      # typed, and found by grep

A method runs on the workers of its layout, whichever these are:

| mode | runs on | batch arguments | result on the driver |
|---|---|---|---|
| SPLIT_BY_DP | every rank | rows split over dp, tp/pp/cp peers get the same | one rank of each replica: see below |
| BROADCAST | every rank | whole, the same for all | rank 0's |
| RANK_ZERO | rank 0 | whole | rank 0's |
| ALL | every rank | whole, the same for all | a list, by rank |

Of a batch argument the columns travel that the schema says the layout's methods read. SPLIT_BY_DP puts batches that the
replicas return back into the driver's row order (``meta["replicas"]`` lists what each replica wrote into its metadata);
any other result comes as a list, one a replica. A batch whose response lengths are known is split by tokens, each
mini-batch evenly by itself, the responses of one prompt together unless that makes the slowest replica slower, so that
the prompt is computed once; a batch that has yet to be generated is cut into contiguous runs of rows, so that the
responses of one prompt share a replica's prefix cache.

The lower half of this module says who runs a call with what; it is pure, and the same for every backend.
"""

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, Literal, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar, overload

import numpy as np

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto, partition_rows

Params = ParamSpec("Params")
Result = TypeVar("Result")
Collected = TypeVar("Collected", covariant=True)
Function: TypeAlias = Callable[Concatenate[Any, Params], Result]
"""A method as it is written; the first parameter is the worker."""


class Dispatch(enum.Enum):
    """The modes; the module's docstring says what each does."""

    BROADCAST = "broadcast"
    SPLIT_BY_DP = "split_by_dp"
    RANK_ZERO = "rank_zero"
    ALL = "all"


class WorkerMethod(Generic[Params, Result, Collected]):
    """A method with its mode and layout; on an instance it is the plain bound method.

    Its type carries three things: the parameters, what the method returns on a worker (``Result``), and what a group
    returns on the driver (``Collected``).
    """

    def __init__(self, function: Function[Params, Result], mode: Dispatch, layout: str) -> None:
        self.function, self.mode, self.layout = function, mode, layout
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
    def __call__(self, function: Function[Params, DataProto], /) -> WorkerMethod[Params, DataProto, DataProto]: ...
    @overload
    def __call__(self, function: Function[Params, Result], /) -> WorkerMethod[Params, Result, list[Result]]: ...


@overload
def dispatch(mode: Literal[Dispatch.SPLIT_BY_DP], layout: str = "train") -> _SplitDecorator: ...
@overload
def dispatch(
    mode: Literal[Dispatch.ALL], layout: str = "train"
) -> Callable[[Function[Params, Result]], WorkerMethod[Params, Result, list[Result]]]: ...
@overload
def dispatch(
    mode: Literal[Dispatch.BROADCAST, Dispatch.RANK_ZERO], layout: str = "train"
) -> Callable[[Function[Params, Result]], WorkerMethod[Params, Result, Result]]: ...
def dispatch(mode: Dispatch, layout: str = "train") -> Any:
    """Declares how a group runs the decorated worker method.

    Args:
        mode: one of :class:`Dispatch`; there is no default.
        layout: the group's layout whose workers run it, e.g. ``"train"`` or ``"rollout"``.
    """
    return functools.partial(WorkerMethod, mode=mode, layout=layout)


class Arguments(NamedTuple):
    """Positional and named arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def batches(self) -> list[DataProto]:
        """The arguments that are batches."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, DataProto)]

    def map_batches(self, function: Callable[[DataProto], DataProto]) -> "Arguments":
        """The same arguments with ``function`` applied to every batch."""
        args = tuple(function(value) if isinstance(value, DataProto) else value for value in self.args)
        kwargs = {k: function(v) if isinstance(v, DataProto) else v for k, v in self.kwargs.items()}
        return Arguments(args, kwargs)


@dataclass(frozen=True, slots=True)
class Replicas:
    """The model replicas of a layout, as workers of a group.

    Args:
        members: the workers of each replica; they receive the same rows.
        answering: the one worker of each replica whose result is collected.
        everyone: the worker of each rank of the layout.
    """

    members: tuple[tuple[int, ...], ...]
    answering: tuple[int, ...]
    everyone: tuple[int, ...]

    @classmethod
    def of_layout(cls, layout: ParallelLayout, workers: Sequence[int]) -> "Replicas":
        """The replicas by their dp coordinate, from the worker of each rank."""
        members: list[list[int]] = [[] for _ in range(layout.dp)]
        for rank, worker in enumerate(workers):
            members[layout.coordinate(rank).dp].append(worker)
        answering = tuple(workers[layout.output_rank_of_dp(dp)] for dp in range(layout.dp))
        return cls(tuple(map(tuple, members)), answering, tuple(workers))


class CallPlan(NamedTuple):
    """One call on the group: who runs it with what, and whose answers count.

    Args:
        mode: how the method is dispatched.
        arguments: of the call, with all rows; every worker that runs gets them, cut to its rows.
        workers: that run.
        answering: the workers whose results are collected, in order.
        rows: for a split, the driver's rows by worker.
    """

    mode: Dispatch
    arguments: Arguments
    workers: tuple[int, ...]
    answering: tuple[int, ...]
    rows: Mapping[int, np.ndarray]

    def arguments_of(self, worker: int) -> Arguments:
        """What that worker runs with."""
        if worker not in self.rows:
            return self.arguments
        return self.arguments.map_batches(lambda batch: batch.take(self.rows[worker]))


def plan_call(method: WorkerMethod[Any, Any, Any], replicas: Replicas, arguments: Arguments) -> CallPlan:
    """Decides who runs a call with which rows and columns.

    Raises:
        DispatchError: a split without a batch, or with batches of different length.
    """
    carried = arguments.map_batches(lambda batch: batch.read_by(method.layout))
    everyone, first = replicas.everyone, replicas.everyone[:1]
    if method.mode is Dispatch.SPLIT_BY_DP:
        rows = _rows_by_worker(replicas, arguments.batches())
        return CallPlan(method.mode, carried, everyone, replicas.answering, rows)
    workers = first if method.mode is Dispatch.RANK_ZERO else everyone
    return CallPlan(method.mode, carried, workers, everyone if method.mode is Dispatch.ALL else first, {})


def collect(plan: CallPlan, results: Sequence[Any]) -> Any:
    """What the driver gets from the results of the answering workers.

    Raises:
        DispatchError: a replica returned a batch of other length than it was given.
    """
    if plan.mode is Dispatch.ALL:
        return list(results)
    if plan.mode is not Dispatch.SPLIT_BY_DP:
        return results[0]
    batches = [result for result in results if isinstance(result, DataProto)]
    if len(batches) < len(results):
        return list(results)
    rows = [plan.rows[worker] for worker in plan.answering]
    for worker, given, batch in zip(plan.answering, rows, batches, strict=True):
        if len(batch) != len(given):
            raise DispatchError(
                f"rank {worker} was given {len(given)} rows and returned {len(batch)}; a method that is split by dp "
                f"returns one row for each row it was given"
            )
    metas = [dict(batch.meta) for batch in batches]
    return DataProto.concat(batches, {"replicas": metas} if any(metas) else {}, rows)


def _rows_by_worker(replicas: Replicas, batches: Sequence[DataProto]) -> dict[int, np.ndarray]:
    lengths = {len(batch) for batch in batches}
    if len(lengths) != 1:
        raise DispatchError(
            f"a call that is split by dp needs batches of one length among its arguments; got lengths {sorted(lengths)}"
        )
    parts = partition_rows(batches[0], len(replicas.members))
    return {worker: rows for rows, members in zip(parts, replicas.members, strict=True) for worker in members}
