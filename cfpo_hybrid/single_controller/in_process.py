"""Workers in the driver's own process, one call after the other: the semantics of a group, for tests and debuggers.

World size 1 runs everything that a real worker runs, process groups of one rank included. With more workers there are
no collectives between them, since each call runs to its end before the next worker's begins.
"""

import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from cfpo_hybrid.errors import WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller.context import WorkerContext, free_port
from cfpo_hybrid.single_controller.group import Closable, Future, WorkerGroup
from cfpo_hybrid.single_controller.split import CallPlan, collect


@dataclass(frozen=True, slots=True)
class _Done:
    """A call that has already run."""

    value: Any
    error: WorkerError | None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class InProcessWorkerGroup(WorkerGroup):
    """A group whose workers live in this process; ``workers`` lists them.

    Args:
        worker_class: class of the workers.
        args: what each worker gets after its context.
        layouts: by name, as for any group; by default ``{"train": one rank}``.
        role: name in messages.

    Raises:
        WorkerError: a worker's constructor raised.
        ConfigError: layouts of different size.
    """

    def __init__(
        self,
        worker_class: type,
        *,
        args: Sequence[Any] = (),
        layouts: Mapping[str, ParallelLayout] | None = None,
        role: str = "worker",
    ) -> None:
        layouts = layouts or {"train": ParallelLayout()}
        world_size = next(iter(layouts.values())).world_size
        super().__init__(worker_class, role=role, world_size=world_size, layouts=layouts)
        self.workers: list[Any] = []
        with ExitStack() as on_failure:
            on_failure.callback(self.shutdown)  # those that were made before the one that failed
            for context in _contexts(role, world_size):
                made = self._attempt(context.rank, "__init__", lambda context=context: worker_class(context, *args))
                self.workers.append(made)
            on_failure.pop_all()

    def shutdown(self) -> None:
        """Closes every worker that can be closed, the later ones first."""
        workers, self.workers = self.workers, []
        self._stopped = self._stopped or "it was shut down"
        with ExitStack() as closing:  # goes on to the others when one of them raises
            for worker in workers:
                if isinstance(worker, Closable):
                    closing.callback(worker.close)

    def _share(self, batch: DataProto) -> DataProto:
        return batch

    def _submit(self, method: str, plan: CallPlan) -> Future[Any]:
        results: dict[int, Any] = {}
        try:
            for rank in plan.ranks:
                arguments = plan.arguments_of(rank)
                call = methodcaller(method, *arguments.args, **arguments.kwargs)
                worker = self.workers[rank]
                results[rank] = self._attempt(rank, method, lambda call=call, worker=worker: call(worker))
        except WorkerError as error:
            self._stopped = f"it failed before: rank {error.rank} in {error.method}"
            self.shutdown()
            return _Done(None, error)
        return _Done(collect(plan, [results[rank] for rank in plan.answering]), None)

    def _attempt(self, rank: int, method: str, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a worker raises, the driver sees one kind of error, as with Ray
            raise WorkerError(self.role, rank, method, traceback.format_exc()) from error


def _contexts(role: str, world_size: int) -> list[WorkerContext]:
    port, job_id = free_port(), uuid.uuid4().hex[:12]
    return [
        WorkerContext(
            role=role,
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            local_world_size=world_size,
            node_ip="127.0.0.1",
            master_address="127.0.0.1",
            master_port=port,
            job_id=job_id,
        )
        for rank in range(world_size)
    ]
