"""Batches as bytes and files, without code execution: a JSON header, then the tensors' raw memory.

    8 bytes magic "CFPOBAT1" | 8 bytes header size, little-endian | header (JSON) | buffers, each 64-byte aligned

The header lists the tensors (name, dtype, shape, offset), the object columns (as JSON values) and the metadata.
Reading checks every size against the bytes at hand; nothing is ever unpickled.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol.batch import DataProto

_MAGIC = b"CFPOBAT1"
_ALIGNMENT = 64
_DTYPES = ("int64", "float32", "bool")


def to_bytes(batch: DataProto) -> bytes:
    """The batch as bytes; the inverse of :func:`from_bytes`.

    Raises:
        BatchError: a cell of an object column that JSON cannot hold.
    """
    tensors: list[dict[str, Any]] = []
    buffers: list[np.ndarray] = []
    objects: dict[str, list[object]] = {}
    offset = 0
    for name in batch.column_names:
        array = np.ascontiguousarray(batch.column(name))
        if array.dtype == object:
            objects[name] = array.tolist()
            continue
        tensors.append({"name": name, "dtype": str(array.dtype), "shape": list(array.shape), "offset": offset})
        buffers.append(array)
        offset += _aligned(array.nbytes)
    header = _header({"tensors": tensors, "objects": objects, "meta": dict(batch.meta)})
    pieces: list[bytes | memoryview] = [_MAGIC, len(header).to_bytes(8, "little"), header]
    for array in buffers:
        pieces += [array.data, b"\0" * (_aligned(array.nbytes) - array.nbytes)]
    return b"".join(pieces)


def from_bytes(data: bytes | bytearray | memoryview) -> DataProto:
    """The batch that :func:`to_bytes` wrote; tensors share the memory of ``data``.

    Raises:
        BatchError: not such bytes, damaged or cut short, or a batch that breaks the schema.
    """
    view = memoryview(data)
    if len(view) < 16 or bytes(view[:8]) != _MAGIC:
        raise BatchError("these bytes are no batch: they do not begin with the mark 'CFPOBAT1'")
    start = 16 + int.from_bytes(view[8:16], "little")
    if start > len(view):
        raise BatchError("these bytes are a batch cut short: the header is incomplete")
    try:
        header = json.loads(bytes(view[16:start]))
        columns = {
            tensor["name"]: _read_tensor(view[start:], tensor["dtype"], tensor["shape"], tensor["offset"])
            for tensor in header["tensors"]
        }
        return DataProto({**columns, **dict(header["objects"])}, dict(header["meta"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BatchError(f"these bytes are a damaged batch: {error}") from error


def save(batch: DataProto, path: str | Path) -> None:
    """Writes the batch to a file; an existing file is replaced at once, never left half written."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_bytes(to_bytes(batch))
    partial.replace(target)


def load(path: str | Path) -> DataProto:
    """Reads a batch that :func:`save` wrote.

    Raises:
        BatchError: the file holds no batch.
    """
    return from_bytes(bytearray(Path(path).read_bytes()))


def _header(content: dict[str, Any]) -> bytes:
    try:
        header = json.dumps(content).encode()
    except (TypeError, ValueError) as error:
        raise BatchError(f"object columns are saved as JSON, which cannot hold this batch's: {error}") from error
    return header + b" " * (_aligned(16 + len(header)) - 16 - len(header))


def _read_tensor(body: memoryview, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if dtype not in _DTYPES or offset < 0 or any(size < 0 for size in shape):
        raise ValueError(f"a tensor of dtype {dtype}, shape {shape} at offset {offset}")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    end = offset + count * np.dtype(dtype).itemsize
    if end > len(body):
        raise ValueError(f"a tensor ends at byte {end} of {len(body)}")
    return np.frombuffer(body[offset:end], dtype=dtype).reshape(shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
