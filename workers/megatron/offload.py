"""Frees the device of a sleeping model by emptying storages in place, so that every view of them stays valid.

Megatron-core's parameters are views of flat buffers, and with fp32 weights the optimizer's masters are views of the
same buffers: moving tensors one by one would tear them apart. A storage that is emptied and refilled keeps them joined.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]


class Offload:
    """Three kinds of memory: weights and optimizer state, which move to the host, and gradients, which are dropped.

    Args:
        weights: what inference and a reshard need.
        state: what only an optimizer step needs.
        gradients: of no value between optimizer steps.
    """

    def __init__(self, *, weights: Tensors, state: Tensors, gradients: Tensors) -> None:
        self._weights, self._state, self._gradients = weights, state, gradients
        self._on_host: dict[str, list[tuple[torch.UntypedStorage, torch.UntypedStorage]]] = {}
        self._dropped: list[tuple[torch.UntypedStorage, int]] = []

    def offload(self) -> None:
        """Empties all three; does nothing for what is away already."""
        for kind, tensors in (("weights", self._weights), ("state", self._state)):
            if kind not in self._on_host:
                self._on_host[kind] = [(storage, _empty(storage)) for storage in _storages(tensors())]
        for storage in _storages(self._gradients()):
            self._dropped.append((storage, storage.nbytes()))
            storage.resize_(0)

    def onload(self, *, training: bool) -> None:
        """Brings back the weights, and for training the rest; does nothing for what is there already."""
        for kind in ("weights", "state") if training else ("weights",):
            for storage, copy in self._on_host.pop(kind, []):
                storage.resize_(copy.nbytes())
                storage.copy_(copy)
        if training:
            for storage, size in self._dropped:  # the optimizer clears them before the first micro-batch
                storage.resize_(size)
            self._dropped = []


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """The distinct storages that hold anything."""
    found = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return [storage for storage in found.values() if storage.nbytes()]


def _empty(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copy = torch.UntypedStorage(storage.nbytes())
    if storage.device.type == "cuda":
        copy = copy.pin_memory()
    copy.copy_(storage)
    storage.resize_(0)
    return copy
