"""Frees the device of a sleeping model by emptying storages in place, so that every view of them stays valid.

Megatron-core's parameters are views of flat buffers, and with fp32 weights the optimizer's masters are views of the
same buffers: moving tensors one by one would tear them apart. A storage that is emptied and refilled keeps them joined.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Shaped
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]
Storage = torch.UntypedStorage


class Offload:
    """Three kinds of memory: weights and optimizer state, which move to the host, and gradients, which are dropped.

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
