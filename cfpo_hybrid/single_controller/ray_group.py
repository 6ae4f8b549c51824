"""Worker groups on Ray: one actor a worker, in placement groups packed per node. Nothing here waits without an end."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cfpo_hybrid.errors import ConfigError, DispatchError, WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.plugins import CALLERS_FOLDER, search_callers_folder_last
from cfpo_hybrid.single_controller.dispatch import CallPlan, collect
from cfpo_hybrid.single_controller.failures import Failure, worker_error
from cfpo_hybrid.single_controller.group import Closable, Future, WorkerGroup
from cfpo_hybrid.single_controller.resources import HostInfo, ResourcePool, WorkerContext, free_port
from cfpo_hybrid.single_controller.wire import decode_call, decode_reply, encode_call, encode_reply

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
"""Longest time until the failure of one worker is seen while others still work."""
_GRACE_SECONDS = 2.0
"""How long other workers' failures are collected after the first one, to find the root."""
_ROOT_GRACE_SECONDS = 10.0
"""The same while every failure seen is the echo of a lost peer, whose death Ray has yet to report."""
_LOOK_SECONDS = 1.0
"""How often nodes that have yet to join are looked for, and how soon a wait is told of first."""
_TELL_SECONDS = 30.0
"""How often a wait that goes on is told of."""


def _nobody(what: str) -> None:
    """Where nobody is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a group waits for what it books, and who is told of it.

    Args:
        nodes_seconds: for nodes that have yet to join the cluster; 0 where all are there.
        busy_seconds: for resources that others use.
        tell: is told what is missing, after a second and then every half minute.
    """

    nodes_seconds: float = 0.0
    busy_seconds: float = 20.0
    tell: Callable[[str], None] = _nobody


class RayHost:
    """The actor that holds one worker and runs its methods; what these raise goes back as a :class:`Failure`.

    With what it calls, this is all of the controller that runs in the worker's process.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.worker: Any = None

    def info(self) -> HostInfo:
        """Where this process runs."""
        node_id = ray.get_runtime_context().get_node_id()
        return HostInfo(node_id, ray.util.get_node_ip_address(), free_port(), tuple(map(str, ray.get_gpu_ids())))

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Sets what is known only once every worker has its place; runs before the worker's class is imported."""
        os.environ.update(variables)
        search_callers_folder_last()  # Ray has put it first

    def build(self, context: WorkerContext, made_of: tuple[type, tuple[Any, ...]]) -> Failure | None:
        """Makes the worker from its class and arguments."""
        worker_class, args = made_of
        try:
            self.worker = worker_class(context, *args)
        except Exception as error:  # the driver raises it as WorkerError
            return Failure.of_error(self.rank, "__init__", error)
        return None

    def execute(self, message: bytes, *beside: Any) -> Any:
        """Runs the method that a message tells; ``beside`` is what travels by reference."""
        method = "a call that could not be read"
        try:
            method, answers, whole = decode_call(message, *beside)
            result = methodcaller(method, *whole.args, **whole.kwargs)(self.worker)
            return encode_reply(result if answers else None)
        except Exception as error:  # the driver raises it as WorkerError
            return Failure.of_error(self.rank, method, error)

    def close(self) -> None:
        """Lets the worker clean up, if it can."""
        if isinstance(self.worker, Closable):
            self.worker.close()


@dataclass(eq=False, slots=True)
class _StartedCall:
    """One call under way: what each rank will answer, and what has been read of it."""

    method: str
    replies: dict[int, ObjectRef]
    outcomes: dict[int, Any] = field(default_factory=dict)

    def poll(self, seconds: float) -> bool:
        """Reads the answers that are there within that time; True when all are."""
        if not self.outcomes:
            if self._read_all(seconds):
                return True
            seconds = 0.0
        unread = {ref: rank for rank, ref in self.replies.items() if rank not in self.outcomes}
        if not unread:
            return True
        ready, pending = ray.wait(list(unread), num_returns=len(unread), timeout=seconds)
        for ref in ready:
            self.outcomes[unread[ref]] = self._read(unread[ref], ref)
        return not pending

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == len(self.replies) and not self.failures

    @property
    def failures(self) -> list[Failure]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, Failure)]

    def _read_all(self, seconds: float) -> bool:
        """The usual case in one step: every worker answers in time."""
        try:
            self.outcomes = dict(zip(self.replies, ray.get(list(self.replies.values()), timeout=seconds), strict=True))
        except RayError:
            return False
        return True

    def _read(self, rank: int, ref: ObjectRef) -> Any:
        try:
            return ray.get(ref)
        except RayError as error:
            died = isinstance(error, RayActorError)
            summary = "the process died" if died else str(error).strip().split("\n")[-1]
            cause = f"the worker's process died\n{error}" if died else str(error)
            return Failure(rank=rank, method=self.method, died=died, time=time.time(), summary=summary, cause=cause)


class _RayFuture:
    """A call that has been started on a Ray group."""

    def __init__(self, group: "RayWorkerGroup", call: _StartedCall, plan: CallPlan) -> None:
        self._group, self._call, self._plan = group, call, plan

    def result(self) -> Any:
        """Waits for the call; see :meth:`Future.result`."""
        outcomes = self._group._await(self._call)
        return collect(self._plan, [decode_reply(outcomes[rank]) for rank in self._plan.answering])


class RayWorkerGroup(WorkerGroup):
    """A group whose workers are Ray actors, all up once it is made.

    The first failure of any worker kills all of them and raises :class:`WorkerError` with the root cause first.

    Args, beside those of any group:
        worker_class: importable in the workers.
        args: what each worker gets after its context.
        pool: how many workers where.
        patience: with nodes that are not there yet, and with others that use them.
        env: environment of the workers' processes, set before they import anything.

    Raises:
        ConfigError: the cluster cannot hold the pool, or a layout does not fit it.
        WorkerError: a constructor raised or a process died.
    """

    close_seconds = 20.0
    """How long workers may take to clean up at shutdown before they are killed."""

    def __init__(
        self,
        worker_class: type,
        *,
        args: Sequence[Any] = (),
        pool: ResourcePool,
        layouts: Mapping[str, ParallelLayout],
        role: str,
        env: Mapping[str, str] | None = None,
        placement: Mapping[str, Sequence[int]] | None = None,
        patience: Patience = Patience(),
    ) -> None:
        super().__init__(worker_class, role=role, world_size=pool.world_size, layouts=layouts, placement=placement)
        self.hosts: list[Any] = []
        self.infos: list[HostInfo] = []
        self._reservation: PlacementGroup | None = None
        self._execute: list[Any] = []
        self._calls: list[_StartedCall] = []
        self._error: WorkerError | None = None
        try:
            self._launch(pool, dict(env or {}), patience)
            self._build(tuple(args))
        except BaseException:
            self._stop("it failed to start")
            raise

    def shutdown(self) -> None:
        """Lets every worker close within a bounded time, kills what is left and frees the resources."""
        if self._stopped is None:
            closing = [host.close.remote() for host in self.hosts]
            late = ray.wait(closing, num_returns=len(closing), timeout=self.close_seconds)[1] if closing else []
            if late:
                logger.warning("%d of %d %s workers did not close in time", len(late), len(closing), self.role)
        self._stop("it was shut down")

    # --- calls

    def _submit(self, method: str, plan: CallPlan) -> Future[Any]:
        call = encode_call(method, plan.arguments)
        replies: dict[int, ObjectRef] = {}
        for rank in plan.workers:
            message = call.message(plan.rows.get(rank), answers=rank in plan.answering)
            replies[rank] = self._execute[rank].remote(*message)
        return _RayFuture(self, self._begin(method, replies), plan)

    def _begin(self, method: str, replies: dict[int, ObjectRef]) -> _StartedCall:
        call = _StartedCall(method, replies)
        self._calls.append(call)
        return call

    def _await(self, call: _StartedCall) -> dict[int, Any]:
        """Waits until the call is complete, or anything that the group has under way has failed."""
        self._refuse_lost(call)
        while not call.poll(_POLL_SECONDS) or call.failures:
            self._refuse_lost(call)  # another thread may have shut the group down
            for other in self._calls:
                other.poll(0)
            if any(other.failures for other in self._calls):
                self._fail()
        if call in self._calls:
            self._calls.remove(call)
        return call.outcomes

    def _refuse_lost(self, call: _StartedCall) -> None:
        if call not in self._calls and not call.complete:
            raise self._error or DispatchError(f"a call of {call.method} was lost: group '{self.role}' was shut down")

    def _fail(self) -> None:
        started = time.monotonic()
        while True:
            waited = time.monotonic() - started
            complete = min([call.poll(0.1) for call in self._calls])
            failures = [failure for call in self._calls for failure in call.failures]
            patience = _ROOT_GRACE_SECONDS if all(failure.is_consequence for failure in failures) else _GRACE_SECONDS
            if complete or waited > patience:
                break
        failed = {failure.rank for failure in failures}
        running = sorted({rank for call in self._calls for rank in call.replies if rank not in call.outcomes} - failed)
        self._error = worker_error(self.role, failures, running)
        self._stop(f"it failed before: rank {self._error.rank} in {self._error.method}")
        raise self._error

    # --- life

    def _launch(self, pool: ResourcePool, env: dict[str, str], patience: Patience) -> None:
        self._reservation = None if pool.books_nothing else _reserve(pool, patience)
        actor = ray.remote(num_cpus=pool.cpus_per_worker, num_gpus=pool.gpus_per_worker, runtime_env={"env_vars": env})(
            RayHost
        )
        for rank in range(pool.world_size):
            node = _node_of(self._reservation, rank // pool.workers_per_node)
            self.hosts.append(actor.options(scheduling_strategy=node).remote(rank))
        self._execute = [host.execute for host in self.hosts]  # Ray makes a method anew whenever it is read
        self.infos = self._on_all("start", lambda host, _: host.info.remote())

    def _build(self, args: tuple[Any, ...]) -> None:
        contexts = self._contexts(self.infos)
        self._on_all("start", lambda host, rank: host.set_environment.remote(self._environment(contexts[rank])))
        made_of = ray.put((self.worker_class, args))
        self._on_all("__init__", lambda host, rank: host.build.remote(contexts[rank], made_of))

    def _environment(self, context: WorkerContext) -> dict[str, str]:
        """Ranks and rendezvous; with GPUs also the group's devices on that node, in the order of local ranks."""
        node = self.infos[context.rank].node_id
        devices = [info.gpu_ids[0] for info in self.infos if info.node_id == node and info.gpu_ids]
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        return {**context.environment(), **visible, CALLERS_FOLDER: os.getcwd()}

    def _on_all(self, method: str, start: Callable[[Any, int], ObjectRef]) -> list[Any]:
        outcomes = self._await(self._begin(method, {rank: start(host, rank) for rank, host in enumerate(self.hosts)}))
        return [outcomes[rank] for rank in range(self.world_size)]

    def _stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        hosts, self.hosts, self._execute, self._calls = self.hosts, [], [], []
        for host in hosts:
            ray.kill(host, no_restart=True)
        if self._reservation is not None:
            remove_placement_group(self._reservation)
            self._reservation = None


def copies_that_fit(pool: ResourcePool) -> int:
    """How many such pools the cluster could hold side by side, were it idle."""
    return pool.copies_on(_nodes())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _await_nodes(pool: ResourcePool, patience: Patience) -> None:
    """Waits until the cluster's nodes could hold the pool.

    Raises:
        ConfigError: they cannot when the time is over.
    """
    begin, told = time.monotonic(), -_TELL_SECONDS
    while missing := pool.missing(_nodes()):
        waited = time.monotonic() - begin
        if waited >= patience.nodes_seconds:
            pool.check(_nodes())
            return
        if waited - told >= _TELL_SECONDS:
            patience.tell(f"{missing}; waited {waited:.0f} of {patience.nodes_seconds:.0f} s")
            told = waited
        time.sleep(min(_LOOK_SECONDS, patience.nodes_seconds - waited))


def _reserve(pool: ResourcePool, patience: Patience) -> PlacementGroup:
    """Books the pool: bundle i of the placement group holds the workers of the i-th node, which so stay together.

    Raises:
        ConfigError: the cluster is too small, or others keep what is needed.
    """
    _await_nodes(pool, patience)
    strategy = "STRICT_PACK" if pool.num_nodes == 1 else "STRICT_SPREAD"
    reservation = placement_group([pool.node_bundle] * pool.num_nodes, strategy=strategy)
    begin, pause = time.monotonic(), _LOOK_SECONDS
    while (left := patience.busy_seconds - (time.monotonic() - begin)) > 0:
        if reservation.wait(min(pause, left)):
            return reservation
        patience.tell(f"{pool.describe()}: others use the cluster; {_free()}; {max(0.0, left - pause):.0f} s are left")
        pause = _TELL_SECONDS
    remove_placement_group(reservation)
    raise ConfigError(
        f"the cluster could hold {pool.describe()}, but others use it: {_free()}. Waited {patience.busy_seconds:.0f} s. "
        f"Stop the other jobs, or ask for less"
    )


def _free() -> str:
    """What nobody uses, of all there is."""
    kinds = ("CPU", "GPU")
    free = {kind: amount for kind, amount in ray.available_resources().items() if kind in kinds}
    of_all = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in kinds}
    return f"free are {free or 'no CPU or GPU'} of {of_all}"


def _node_of(
    reservation: PlacementGroup | None, index: int
) -> PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy:
    """Where the workers of the pool's ``index``-th node go; without a reservation, to the driver's node."""
    if reservation is None:
        return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return PlacementGroupSchedulingStrategy(reservation, index)
