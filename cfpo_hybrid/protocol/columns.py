"""Columns against the schema: every value that enters a batch passes here."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol.schema import SCHEMA, Column
from cfpo_hybrid.registry import nearest_name

Values: TypeAlias = Tensor | np.ndarray
"""One column as it is given and read: a tensor, or a one-axis numpy array of objects. Batches hold both as arrays."""

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""What metadata and the cells of object columns that go into a file may be."""


def column_of(name: str) -> Column:
    """The schema's entry of a column.

    Raises:
        BatchError: no such column; the message names the nearest one.
    """
    if name not in SCHEMA:
        nearest = nearest_name(name, SCHEMA)
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        raise BatchError(
            f"unknown column '{name}'{hint} Columns are declared in cfpo_hybrid/protocol/schema.py: "
            f"{', '.join(sorted(SCHEMA))}"
        )
    return SCHEMA[name]


@cache
def array_dtype(name: str) -> np.dtype:
    """The dtype of a column as numpy names it."""
    dtype = column_of(name).dtype
    return torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else np.dtype(object)


@cache
def padded_axis(name: str) -> str | None:
    """The token axis of a column, None for a column of one value a row."""
    axes = column_of(name).axes
    return axes[1] if len(axes) > 1 else None


def checked_column(name: str, values: Values | Sequence[object]) -> np.ndarray:
    """The column as an array, once dtype and number of axes agree with the schema.

    The memory of tensors and arrays is shared, that of a device copied to the host; a list becomes an object array.

    Raises:
        BatchError: unknown name, wrong dtype or wrong number of axes.
    """
    column = column_of(name)
    array = _object_array(name, values) if column.dtype is object else _number_array(name, values, column)
    if array.ndim != len(column.axes):
        raise BatchError(
            f"column '{name}' has shape {list(array.shape)}; the schema asks for the axes [{', '.join(column.axes)}]"
        )
    return array


def common_length(columns: Mapping[str, np.ndarray]) -> int:
    """The number of rows all columns share.

    Raises:
        BatchError: no column, or columns of different length.
    """
    if not columns:
        raise BatchError("a batch needs at least one column, else its number of rows is unknown")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        by_name = {name: len(values) for name, values in columns.items()}
        raise BatchError(f"columns differ in their number of rows: {by_name}")
    return lengths.pop()


def common_widths(columns: Mapping[str, np.ndarray], known: Mapping[str, int]) -> dict[str, int]:
    """Width of the prompt and response axes, as all columns and the ``known`` widths agree on.

    Raises:
        BatchError: two columns disagree on an axis.
    """
    widths = dict(known)
    for name, values in columns.items():
        axis = padded_axis(name)
        if axis is None:
            continue
        width = values.shape[1]
        if widths.setdefault(axis, width) != width:
            raise BatchError(
                f"column '{name}' is {width} {axis} positions wide, other columns of the batch {widths[axis]}; "
                f"pad them to the same width"
            )
    return widths


def checked_meta(meta: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A copy of the metadata.

    Raises:
        BatchError: a value that JSON cannot hold.
    """
    for key, value in meta.items():
        _check_json(key, value)
    return dict(meta)


def _check_json(place: str, value: object) -> None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_json(f"{place}[{number}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_json(f"{place}.{key}", item)
    else:
        raise BatchError(
            f"meta '{place}' is a {type(value).__name__}; metadata holds JSON values only (numbers, text, lists, dicts)"
        )


def _object_array(name: str, values: Values | Sequence[object]) -> np.ndarray:
    if isinstance(values, Tensor):
        raise BatchError(f"column '{name}' is a tensor; the schema asks for one Python object a row")
    if isinstance(values, np.ndarray):
        if values.dtype != object:
            raise _wrong_dtype(name, values.dtype)
        return values
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # not array[:] = values, which would spread nested lists over axes
        array[row] = value
    return array


def _number_array(name: str, values: Values | Sequence[object], column: Column) -> np.ndarray:
    if isinstance(values, Tensor):
        if values.dtype != column.dtype:
            raise _wrong_dtype(name, values.dtype)
        return values.numpy(force=True)
    if not isinstance(values, np.ndarray) or values.dtype == object:
        raise BatchError(f"column '{name}' is a {type(values).__name__}; the schema asks for a tensor")
    if values.dtype != array_dtype(name):
        raise _wrong_dtype(name, values.dtype)
    return values


def _wrong_dtype(name: str, found: object) -> BatchError:
    wanted = column_of(name).dtype
    return BatchError(f"column '{name}' has dtype {found}; the schema asks for {wanted}; convert it first")


def tensor_view(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory, also over the read-only memory of an object store.

    Batches are frozen, so nobody writes through it; torch's warning that one could is silenced.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
