"""Worker groups: workers of one class that a driver calls as one. Backends differ only in where the workers live."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, runtime_checkable

from cfpo_hybrid.errors import ConfigError, DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller.dispatch import WorkerMethod
from cfpo_hybrid.single_controller.split import Arguments, CallPlan, Replicas, plan_call

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

    Args:
        worker_class: class of the workers.
        role: name of the group in messages.
        world_size: number of workers.
        layouts: by name, how the workers are laid out for each engine they hold.

    Raises:
        ConfigError: a layout that does not have ``world_size`` ranks.
    """

    def __init__(
        self, worker_class: type, *, role: str, world_size: int, layouts: Mapping[str, ParallelLayout]
    ) -> None:
        for name, layout in layouts.items():
            if layout.world_size != world_size:
                raise ConfigError(
                    f"layout '{name}' of {role} ({layout}) has {layout.world_size} ranks; the group has {world_size} "
                    f"workers, and both must agree"
                )
        self.worker_class, self.role, self.world_size, self.layouts = worker_class, role, world_size, dict(layouts)
        self._replicas = {name: Replicas.of_layout(layout) for name, layout in layouts.items()}
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
        replicas = self._replicas_of(method)
        arguments = Arguments(args, kwargs).map_batches(self._share)
        return cast(Future[Collected], self._submit(method.name, plan_call(method.rule.mode, replicas, arguments)))

    @abstractmethod
    def shutdown(self) -> None:
        """Closes and stops all workers and gives back their resources; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    @abstractmethod
    def _submit(self, method: str, plan: CallPlan) -> Future[Any]:
        """Starts the planned call on the workers."""

    @abstractmethod
    def _share(self, batch: Any) -> Any:
        """A batch whose wide columns lie where all workers reach them."""

    def _replicas_of(self, method: WorkerMethod[Any, Any, Any]) -> Replicas:
        if not isinstance(method, WorkerMethod):
            raise DispatchError(f"{method} has no @dispatch(...), so a group cannot run it")
        if method.owner is not None and not issubclass(self.worker_class, method.owner):
            raise DispatchError(f"{method} is no method of {self.worker_class.__name__}, whose group '{self.role}' is")
        if method.rule.layout in self.layouts:
            return self._replicas[method.rule.layout]
        raise DispatchError(
            f"{method} asks for the layout '{method.rule.layout}'; group '{self.role}' was made with "
            f"{', '.join(sorted(self.layouts)) or 'none'}"
        )
