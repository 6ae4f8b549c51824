"""What of a model is kept in host memory: all of it while it sleeps, and its weights of earlier rollout steps."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Shaped
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]
Storage = torch.UntypedStorage
Weights = dict[str, Tensor]


class Offload:
    """Three kinds of memory: weights and optimizer state, which move to the host, and gradients, which are dropped.

    Storages are emptied in place, so that every view of them stays valid. Megatron-core's parameters are views of flat
    buffers, and with fp32 weights the optimizer's masters are views of the same buffers: moving tensors one by one would
    tear them apart. A storage that is emptied and refilled keeps them joined.

    Args:
        weights: what inference and a reshard need.
        state: what only an optimizer step needs.
        gradients: of no value between optimizer steps.
    """

    def __init__(self, *, weights: Tensors, state: Tensors, gradients: Tensors) -> None:
        self._moving = {"weights": weights, "state": state}
        self._on_host: dict[str, dict[Storage, Storage]] = {}
        self._gradients = gradients
        self._dropped: dict[Storage, int] = {}

    def offload(self) -> None:
        """Empties all three; does nothing for what is away already."""
        for kind, tensors in self._moving.items():
            if kind not in self._on_host:
                self._on_host[kind] = {storage: _empty(storage) for storage in _storages(tensors())}
        for storage in _storages(self._gradients()):
            self._dropped[storage] = storage.nbytes()
            storage.resize_(0)

    def onload(self, *, training: bool) -> None:
        """Brings back the weights, and for training the rest; does nothing for what is there already."""
        for kind in ("weights", "state") if training else ("weights",):
            for storage, copy in self._on_host.pop(kind, {}).items():
                storage.resize_(copy.nbytes())
                storage.copy_(copy)
        if training:
            for storage, size in self._dropped.items():  # the optimizer clears them before the first micro-batch
                storage.resize_(size)
            self._dropped = {}

    def at_rest(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Where the numbers of weights or state lie now: the tensor itself, or while it is empty its like on the host."""
        storage = tensor.untyped_storage()
        for copies in self._on_host.values():
            if storage in copies:
                view = torch.empty(0, dtype=tensor.dtype)
                return view.set_(copies[storage], tensor.storage_offset(), tensor.shape, tensor.stride())
        return tensor


class LaggedWeights:
    """A ring of this rank's parameters as they were, for a rollout that lags behind by a known number of steps.

    With a lag of k it holds, when rollout step s begins, the weights as they were at steps s - k to s - 1, fewer at the
    start of a run; the oldest ones sample. For as long as something has to look at them (the reshard, the probe, the
    log-probs of the policy that sampled) they stand in the model's own memory, and the current ones in the host's.

    Args:
        live: the parameters of the model by name, which must lie on the device when they are read or written.
        lag: rollout steps to keep; 0 keeps none, and then nothing here does anything.
    """

    def __init__(self, live: Callable[[], Mapping[str, Tensor]], lag: int) -> None:
        self.lag = lag
        self._live = live
        self._kept: deque[Weights] = deque(maxlen=lag)  # the oldest first

    @property
    def steps(self) -> int:
        """Rollout steps by which the weights that sample are older than the current ones."""
        return len(self._kept)

    def by_steps(self) -> dict[int, Weights]:
        """The kept weights by how many rollout steps they are old."""
        return {len(self._kept) - place: weights for place, weights in enumerate(self._kept)}

    def remember(self) -> None:
        """Keeps the current weights, before the updates of a rollout step."""
        if self.lag:
            _copy(self._live(), self.make_room())

    def make_room(self) -> Weights:
        """Memory for the newest kept weights, to be filled; the oldest ones leave when the ring is full."""
        full = len(self._kept) == self.lag
        weights = self._kept.popleft() if full else _on_host(self._live())
        self._kept.append(weights)
        return weights

    @contextmanager
    def in_place(self, steps: int) -> Iterator[None]:
        """For this long the model holds the weights of so many rollout steps ago; 0 are the current ones."""
        if steps == 0:
            yield
            return
        live = self._live()
        current = _on_host(live)
        _copy(self.by_steps()[steps], live)
        try:
            yield
        finally:
            _copy(current, live)


def _storages(tensors: Iterable[Tensor]) -> list[Storage]:
    """The distinct storages that hold anything."""
    return [storage for storage in dict.fromkeys(tensor.untyped_storage() for tensor in tensors) if storage.nbytes()]


def _empty(storage: Storage) -> Storage:
    copy = Storage(storage.nbytes())
    if storage.device.type == "cuda":
        copy = copy.pin_memory()
    copy.copy_(storage)
    storage.resize_(0)
    return copy


def _on_host(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
