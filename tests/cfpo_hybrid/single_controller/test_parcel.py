"""What a worker unpacks is what the driver packed, wherever its columns lie."""

import numpy as np
import pytest
import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.single_controller import parcel
from cfpo_hybrid.single_controller.split import Arguments


class LocalPart(parcel.StoredPart):
    """A part of an object store that is this process."""

    def __init__(self, batch: DataProto) -> None:
        self.ref, self.length, self.widths = batch, len(batch), batch.widths  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_of_a_batch_at_hand_are_shared_as_the_batch_itself_is(monkeypatch: pytest.MonkeyPatch):
    put: list[DataProto] = []
    monkeypatch.setattr(parcel.ray, "put", lambda batch: put.append(batch) or len(put))
    width = parcel.INLINE_BYTES // 8
    batch = DataProto({"prompts": torch.arange(4 * width).view(4, width), "prompt_lengths": torch.full((4,), width)})
    near = batch.rows([3, 1])  # nothing is gathered yet
    far = DataProto({"responses": torch.zeros(2, 3, dtype=torch.int64)})
    shared = parcel.share(near.merge(DataProto.of_state(far.state(()), {"responses": Block.whole(LocalPart(far))})))
    assert all(isinstance(part, parcel.StoredPart) for block in shared.deferred.values() for part in block.parts)
    assert set(shared.deferred) == {"prompts", "prompt_lengths", "responses"} and len(put) == 1
    assert put[0].column_names == ("prompt_lengths", "prompts") and put[0]["prompts"].equal(batch["prompts"][[3, 1]])
    call = parcel.pack("score", Arguments((shared,), {}))
    assert isinstance(call.body, bytes) and len(call.body) < 4096


@pytest.mark.parametrize("rows", [None, [2, 0]], ids=["all rows", "some rows"])
def test_wide_columns_of_the_message_join_those_of_the_store(rows: list[int] | None):
    near = DataProto({"prompts": torch.arange(6).view(3, 2), "prompt_lengths": torch.tensor([2, 1, 2])})
    far = DataProto({"responses": torch.arange(12).view(3, 4)})
    block = Block.whole(LocalPart(far))
    batch = near.merge(DataProto.of_state(far.state(()), {"responses": block}))
    call = parcel.pack("score", Arguments((batch,), {}))
    wanted = None if rows is None else np.array(rows)
    method, answers, arguments = parcel.unpack(*call.arguments_for(wanted, answers=True))
    (found,) = arguments.args
    assert (method, answers, found.column_names) == ("score", True, batch.column_names)
    chosen = rows or [0, 1, 2]
    for name in batch.column_names:
        assert found[name].equal(batch[name][chosen]) if name != "responses" else found[name].equal(far[name][chosen])


def test_large_arguments_that_are_no_batch_are_stored_once_for_all_ranks(monkeypatch: pytest.MonkeyPatch):
    put: list[bytes] = []
    monkeypatch.setattr(parcel.ray, "put", lambda body: put.append(body) or body)
    text, batch = "x" * 2 * parcel.INLINE_BYTES, DataProto({"rewards": torch.arange(4.0)})
    call = parcel.pack("score", Arguments((text,), {"batch": batch, "scale": 2.0}))
    for rows, answers in ([3, 0], True), ([1], False):
        message, stored = call.arguments_for(np.array(rows), answers)
        method, asked, arguments = parcel.unpack(message, stored)
        assert (method, asked, arguments.args, arguments.kwargs["scale"]) == ("score", answers, (text,), 2.0)
        assert arguments.kwargs["batch"]["rewards"].tolist() == rows and len(message) < 4096
    assert len(put) == 1
