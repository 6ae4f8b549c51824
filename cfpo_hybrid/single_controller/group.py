"""Worker groups: workers of one class that a driver calls as one. Backends differ only in where the workers live."""

import traceback
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import ExitStack
from functools import partial
from operator import methodcaller
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, runtime_checkable

from cfpo_hybrid.errors import ConfigError, DispatchError, WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller.dispatch import Arguments, CallPlan, Replicas, WorkerMethod, collect, plan_call
from cfpo_hybrid.single_controller.resources import HostInfo, WorkerContext, free_port

Params = ParamSpec("Params")
Collected = TypeVar("Collected")
Value = TypeVar("Value", covariant=True)


@runtime_checkable
class Closable(Protocol):
    """A worker that has something to clean up when its group shuts down."""

    def close(self) -> None:
        """Releases what the worker holds; called once."""
        ...


class Future(Protocol, Generic[Value]):
    """The result of a call that has been started."""

    def result(self) -> Value:
        """Waits for the call and returns what :meth:`WorkerGroup.run` would.

        Raises:
            WorkerError: a worker raised or died.
        """
        ...


class WorkerGroup(ABC):
    """Workers of one class, called as one.

    A worker class is plain: ``__init__(self, context: WorkerContext, *args)`` and methods with ``@dispatch``; an
    optional ``close()`` runs at shutdown. The first failure ends the group: every worker is stopped and later calls
    raise.

    Two engines in the same processes are two layouts over all workers; engines in processes of their own are layouts
    that name theirs: ``layouts={"train": ParallelLayout(dp=2), "rollout": ParallelLayout()}`` with
    ``placement={"train": [0, 1], "rollout": [2]}``. Who calls the group sees no difference.

    Args:
        worker_class: class of the workers.
        role: name of the group in messages.
        world_size: number of workers.
        layouts: by name, how the ranks of each engine are laid out.
        placement: by layout, the worker of each rank; by default rank i is worker i, for all workers of the group.

    Raises:
        ConfigError: a layout without one worker of the group for each rank.
    """

    def __init__(
        self,
        worker_class: type,
        *,
        role: str,
        world_size: int,
        layouts: Mapping[str, ParallelLayout],
        placement: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.worker_class, self.role, self.world_size = worker_class, role, world_size
        self._replicas: dict[str, Replicas] = {}
        for name, layout in layouts.items():
            chosen = (placement or {}).get(name, range(world_size))
            if len(chosen) != layout.world_size or len(set(chosen) & set(range(world_size))) < len(chosen):
                raise ConfigError(
                    f"layout '{name}' of {role} ({layout}) has {layout.world_size} ranks; the group has {world_size} "
                    f"workers, of which each rank needs its own, and the layout is given {chosen}"
                )
            self._replicas[name] = Replicas.of_layout(layout, chosen)
        self._stopped: str | None = None

    def run(
        self, method: WorkerMethod[Params, Any, Collected], *args: Params.args, **kwargs: Params.kwargs
    ) -> Collected:
        """Calls a worker method on the group and waits: ``group.run(HybridWorker.generate, batch)``.

        Raises:
            WorkerError: a worker raised or died; the group is stopped.
            DispatchError: arguments or results against the method's mode, a method of another class, or a stopped
                group.
        """
        return self.start(method, *args, **kwargs).result()

    def start(
        self, method: WorkerMethod[Params, Any, Collected], *args: Params.args, **kwargs: Params.kwargs
    ) -> Future[Collected]:
        """Begins a call and returns at once. Calls on one group run in the order in which they were started."""
        if self._stopped is not None:
            raise DispatchError(f"cannot run {method} on group '{self.role}': {self._stopped}")
        plan = plan_call(method, self._replicas_of(method), Arguments(args, kwargs))
        return cast(Future[Collected], self._submit(method.name, plan))

    @abstractmethod
    def shutdown(self) -> None:
        """Closes and stops all workers and gives back their resources; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @abstractmethod
    def _submit(self, method: str, plan: CallPlan) -> Future[Any]:
        """Starts the planned call on the workers."""

    def _replicas_of(self, method: WorkerMethod[Any, Any, Any]) -> Replicas:
        if not isinstance(method, WorkerMethod):
            raise DispatchError(f"{method} has no @dispatch(...), so a group cannot run it")
        if method.owner is not None and not issubclass(self.worker_class, method.owner):
            raise DispatchError(f"{method} is no method of {self.worker_class.__name__}, whose group '{self.role}' is")
        if method.layout in self._replicas:
            return self._replicas[method.layout]
        raise DispatchError(
            f"{method} asks for the layout '{method.layout}'; group '{self.role}' was made with "
            f"{', '.join(sorted(self._replicas)) or 'none'}"
        )

    def _contexts(self, hosts: Sequence[HostInfo]) -> list[WorkerContext]:
        """What every worker is told, from where each is."""
        nodes = [host.node_id for host in hosts]
        job_id = uuid.uuid4().hex[:12]
        return [
            WorkerContext(
                role=self.role,
                rank=rank,
                world_size=self.world_size,
                ranks={
                    name: replicas.everyone.index(rank)
                    for name, replicas in self._replicas.items()
                    if rank in replicas.everyone
                },
                local_rank=nodes[:rank].count(nodes[rank]),
                local_world_size=nodes.count(nodes[rank]),
                node_ip=host.node_ip,
                master_address=hosts[0].node_ip,
                master_port=hosts[0].port,
                job_id=job_id,
            )
            for rank, host in enumerate(hosts)
        ]


class InProcessWorkerGroup(WorkerGroup):
    """Workers in the driver's own process, one call after the other, for tests and debuggers; ``workers`` lists them.

    World size 1 runs everything that a real worker runs, process groups of one rank included. With more workers there
    are no collectives between them, since each call runs to its end before the next worker's begins.

    Args, beside those of any group:
        args: what each worker gets after its context.
        layouts: by default ``{"train": one rank}``.
        world_size: by default that of the first layout.

    Raises:
        WorkerError: a worker's constructor raised.
        ConfigError: as for any group.
    """

    def __init__(
        self,
        worker_class: type,
        *,
        args: Sequence[Any] = (),
        layouts: Mapping[str, ParallelLayout] | None = None,
        role: str = "worker",
        world_size: int | None = None,
        placement: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        layouts = layouts or {"train": ParallelLayout()}
        world_size = world_size or next(iter(layouts.values())).world_size
        super().__init__(worker_class, role=role, world_size=world_size, layouts=layouts, placement=placement)
        self.workers: list[Any] = []
        try:
            for context in self._contexts([HostInfo("here", "127.0.0.1", free_port())] * world_size):
                self.workers.append(self._attempt(context.rank, "__init__", partial(worker_class, context, *args)))
        except BaseException:
            self.shutdown()  # those that were made before the one that failed
            raise

    def shutdown(self) -> None:
        """Closes every worker that can be closed, the later ones first."""
        workers, self.workers = self.workers, []
        self._stopped = self._stopped or "it was shut down"
        with ExitStack() as closing:  # goes on to the others when one of them raises
            for worker in workers:
                if isinstance(worker, Closable):
                    closing.callback(worker.close)

    def _submit(self, method: str, plan: CallPlan) -> Future[Any]:
        done: futures.Future[Any] = futures.Future()
        results: dict[int, Any] = {}
        try:
            for rank in plan.workers:
                arguments = plan.arguments_of(rank)
                call = methodcaller(method, *arguments.args, **arguments.kwargs)
                results[rank] = self._attempt(rank, method, partial(call, self.workers[rank]))
        except WorkerError as error:
            self._stopped = f"it failed before: rank {error.rank} in {error.method}"
            self.shutdown()
            done.set_exception(error)
        else:
            done.set_result(collect(plan, [results[rank] for rank in plan.answering]))
        return done

    def _attempt(self, rank: int, method: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a worker raises, the driver sees one kind of error, as with Ray
            raise WorkerError(self.role, rank, method, traceback.format_exc()) from error
