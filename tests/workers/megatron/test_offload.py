"""Storages are emptied and refilled in place: views stay views."""

import torch

from workers.megatron.offload import Offload


def test_views_survive() -> None:
    buffer = torch.arange(6.0)
    weight, master = buffer[:4].view(2, 2), buffer[1:3]
    moment, gradient = torch.ones(3), torch.full((5,), 7.0)
    offload = Offload(weights=lambda: [weight], state=lambda: [master, moment], gradients=lambda: [gradient])
    offload.offload()
    offload.offload()  # twice is once
    assert buffer.untyped_storage().nbytes() == moment.untyped_storage().nbytes() == 0
    assert gradient.untyped_storage().nbytes() == 0

    offload.onload(training=False)
    assert buffer.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert moment.untyped_storage().nbytes() == 0

    offload.onload(training=True)
    assert moment.tolist() == [1.0, 1.0, 1.0]
    assert gradient.shape == (5,) and gradient.untyped_storage().nbytes() == 20
    master.fill_(9.0)  # still a part of the buffer, and of the weight
    assert weight.tolist() == [[0.0, 9.0], [9.0, 3.0]]


def test_new_weights_are_what_the_next_sleep_keeps() -> None:
    weight = torch.zeros(3)
    offload = Offload(weights=lambda: [weight], state=list, gradients=list)
    offload.offload()
    offload.onload(training=True)
    weight += 1
    offload.offload()
    offload.onload(training=False)
    assert weight.tolist() == [1.0, 1.0, 1.0]
