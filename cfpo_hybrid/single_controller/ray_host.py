"""The Ray actor that holds one worker: the only code of the controller that runs in the worker's process."""

import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import ray

from cfpo_hybrid.single_controller.context import WorkerContext, free_port
from cfpo_hybrid.single_controller.failures import Failure
from cfpo_hybrid.single_controller.group import Closable
from cfpo_hybrid.single_controller.parcel import pack_reply, unpack


@dataclass(frozen=True, slots=True)
class Place:
    """Where Ray put a worker.

    Args:
        node_id: Ray's id of the node.
        node_ip: its address.
        port: a port that is free there.
        pid: the worker's process.
        gpu_ids: the devices that Ray booked for it.
    """

    node_id: str
    node_ip: str
    port: int
    pid: int
    gpu_ids: tuple[str, ...]


class RayHost:
    """Holds one worker and runs its methods; what a method raises goes back as a :class:`Failure`."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.worker: Any = None

    def place(self) -> Place:
        """Where this process runs."""
        context = ray.get_runtime_context()
        gpu_ids = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), free_port(), os.getpid(), gpu_ids)

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Sets what is known only once every worker has its place; runs before the worker's class is imported."""
        os.environ.update(variables)

    def build(self, context: WorkerContext, made_of: tuple[type, tuple[Any, ...]]) -> Failure | None:
        """Makes the worker from its class and arguments."""
        worker_class, args = made_of
        try:
            self.worker = worker_class(context, *args)
        except Exception as error:  # the driver raises it as WorkerError
            return self._failure("__init__", error)
        return None

    def execute(self, message: bytes, *beside: Any) -> Any:
        """Runs the method that a message tells; ``beside`` is what travels by reference."""
        method = "a call that could not be read"
        try:
            method, answers, whole = unpack(message, *beside)
            result = methodcaller(method, *whole.args, **whole.kwargs)(self.worker)
            return pack_reply(result if answers else None)
        except Exception as error:  # the driver raises it as WorkerError
            return self._failure(method, error)

    def close(self) -> None:
        """Lets the worker clean up, if it can."""
        if isinstance(self.worker, Closable):
            self.worker.close()

    def _failure(self, method: str, error: Exception) -> Failure:
        summary = traceback.format_exception_only(error)[-1].strip().split("\n")[0]
        return Failure(
            rank=self.rank,
            method=method,
            died=False,
            time=time.time(),
            summary=summary,
            cause="".join(traceback.format_exception(error)),
        )
