"""The weights of the last rollout steps, kept in host memory, for a rollout that lags behind by a known number of them.

With a lag of k the ring holds, when rollout step s begins, the weights as they were at steps s - k to s - 1, fewer at the
start of a run; the oldest ones sample. For as long as something has to look at them (the reshard, the probe, the log-probs
of the policy that sampled) they stand in the model's own memory, and the current ones in the host's.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class LaggedWeights:
    """A ring of this rank's parameters.

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


def _on_host(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
