"""The columns a batch may have, and the checks that every value meets on its way into a batch.

Axes: ``batch`` rows are single responses (a prompt repeated ``group_size`` times is that many rows), ``prompt`` and
``response`` are padded token positions. Prompts and responses are both right-padded and kept apart; the engines pack
the real tokens. A column whose first axis is not ``batch`` does not exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.registry import did_you_mean

GivenColumn: TypeAlias = Tensor | np.ndarray | Sequence[object]
"""A column as it is given: numbers as a tensor or an array, objects as an object array or a list of one value a row."""

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""What metadata and the cells of object columns that go into a file may be."""

ROW, PROMPT, RESPONSE = ("batch",), ("batch", "prompt"), ("batch", "response")


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """What the schema says of one column.

    Args:
        dtype: torch dtype, or ``object`` for a non-tensor column (one Python value a row).
        axes: names of the axes, the first always ``"batch"``.
        writer: the stage of the way of a batch that fills it.
        readers: the layouts whose worker methods read it; it travels to no others. The driver reads what it likes.
        meaning: one line for people.
        also_per_row: the shape ``[batch]`` is as good as that of ``axes``.
    """

    dtype: torch.dtype | type
    axes: tuple[str, ...]
    writer: str
    readers: tuple[str, ...]
    meaning: str
    also_per_row: bool = False

    @property
    def shapes(self) -> tuple[tuple[str, ...], ...]:
        """The axes of every shape that the column may have."""
        return (ROW, self.axes) if self.also_per_row else (self.axes,)


SCHEMA: dict[str, ColumnSpec] = {
    # 1 data
    "prompts": ColumnSpec(torch.int64, PROMPT, "data", ("rollout", "train"), "prompt token ids, right-padded"),
    "prompt_lengths": ColumnSpec(torch.int64, ROW, "data", ("rollout", "train"), "real tokens of each prompt"),
    "group_ids": ColumnSpec(torch.int64, ROW, "data", ("train",), "index of the prompt in the rollout batch"),
    "sample_ids": ColumnSpec(torch.int64, ROW, "data", (), "index of the response within its group"),
    "seeds": ColumnSpec(torch.int64, ROW, "data", ("rollout",), "sampling seed from (run seed, step, prompt, sample)"),
    "problem": ColumnSpec(object, ROW, "data", ("reward",), "problem text before the chat template"),
    "ground_truth": ColumnSpec(object, ROW, "data", ("reward",), "the reference answer or solution"),
    "extra": ColumnSpec(object, ROW, "data", ("reward",), "further data set fields as a dict, for custom rewards"),
    # 2 rollout
    "responses": ColumnSpec(torch.int64, RESPONSE, "rollout", ("reward", "train"), "response ids, right-padded"),
    "response_lengths": ColumnSpec(torch.int64, ROW, "rollout", ("reward", "train"), "real tokens, stop included"),
    "response_mask": ColumnSpec(torch.bool, RESPONSE, "rollout", ("train",), "positions that count in the loss"),
    "rollout_log_probs": ColumnSpec(torch.float32, RESPONSE, "rollout", ("train",), "what vLLM sampled with"),
    "truncated": ColumnSpec(torch.bool, ROW, "rollout", (), "response hit the length limit"),
    # 3 reward
    "rewards": ColumnSpec(torch.float32, ROW, "reward", (), "one number a response; NaN: no opinion"),
    "verdicts": ColumnSpec(torch.float32, ROW, "reward", (), "1 right, 0 wrong, NaN no opinion; of rewards that judge"),
    "reward_parts": ColumnSpec(object, ROW, "reward", (), "by name: each of several rewards, and numbers of functions"),
    "greedy_rewards": ColumnSpec(torch.float32, ROW, "reward", (), "reward of the greedy response to the row's prompt"),
    # before 4, by the driver
    "mini_batch": ColumnSpec(
        torch.int64, ROW, "mini_batches", ("train",), "which optimizer step of a pass uses the row"
    ),
    # 4 megatron, recomputed
    "old_log_probs": ColumnSpec(torch.float32, RESPONSE, "megatron", ("train",), "log pi_old, fp32"),
    "ref_log_probs": ColumnSpec(torch.float32, RESPONSE, "megatron", ("train",), "log pi_ref, fp32"),
    "kept_log_mass": ColumnSpec(
        torch.float32, RESPONSE, "megatron", ("train",), "log of the probability that top-p and top-k keep"
    ),
    "entropy": ColumnSpec(torch.float32, RESPONSE, "megatron", (), "policy entropy in nats"),
    "ref_kl": ColumnSpec(torch.float32, ROW, "megatron", (), "KL to the reference, summed over the response"),
    # 5 algorithms
    "advantages": ColumnSpec(
        torch.float32, RESPONSE, "advantage", ("train",), "one number a token, or one a response", also_per_row=True
    ),
}
"""Every column of the project. A new one is added here first."""


def column_spec(name: str) -> ColumnSpec:
    """The schema's entry of a column.

    Raises:
        BatchError: no such column; the message names the nearest one.
    """
    if name not in SCHEMA:
        raise BatchError(
            f"unknown column '{name}'{did_you_mean(name, SCHEMA)} Columns are declared in cfpo_hybrid/protocol/schema.py: "
            f"{', '.join(sorted(SCHEMA))}"
        )
    return SCHEMA[name]


@cache
def array_dtype(name: str) -> np.dtype:
    """The dtype of a column as numpy names it."""
    dtype = column_spec(name).dtype
    return torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else np.dtype(object)


@cache
def columns_read_by(layout: str) -> frozenset[str]:
    """Names of the columns that the worker methods of a layout read."""
    return frozenset(name for name, spec in SCHEMA.items() if layout in spec.readers)


def checked_column(name: str, values: GivenColumn) -> np.ndarray:
    """The column as an array, once dtype and number of axes agree with the schema.

    The memory of tensors and arrays is shared, that of a device copied to the host; a list becomes an object array.

    Raises:
        BatchError: unknown name, wrong dtype or wrong number of axes.
    """
    spec = column_spec(name)
    if spec.dtype is object and not isinstance(values, Tensor | np.ndarray):
        values = _object_array(values)
    if not isinstance(values, Tensor | np.ndarray):
        raise BatchError(f"column '{name}' is a {type(values).__name__}; the schema asks for a tensor")
    if values.dtype != (spec.dtype if isinstance(values, Tensor) else array_dtype(name)):
        asked = "one Python object a row" if spec.dtype is object else f"{spec.dtype}; convert it first"
        raise BatchError(f"column '{name}' has dtype {values.dtype}; the schema asks for {asked}")
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    if array.ndim not in map(len, spec.shapes):
        shapes = " or ".join(f"[{', '.join(shape)}]" for shape in spec.shapes)
        raise BatchError(f"column '{name}' has shape {list(array.shape)}; the schema asks for the axes {shapes}")
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
    """Width of every column that has a token axis: of these columns and, ``known`` already, of others of the batch.

    Raises:
        BatchError: two columns disagree on an axis.
    """
    widths = dict(known)
    of_axis = {SCHEMA[name].axes[1]: width for name, width in known.items()}
    for name, values in columns.items():
        if values.ndim == 1:
            continue
        axis, width = SCHEMA[name].axes[1], values.shape[1]
        if of_axis.setdefault(axis, width) != width:
            raise BatchError(
                f"column '{name}' is {width} {axis} positions wide, other columns of the batch {of_axis[axis]}; "
                f"pad them to the same width"
            )
        widths[name] = width
    return widths


def checked_meta(meta: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A copy of the metadata.

    Raises:
        BatchError: a value that JSON cannot hold.
    """
    for key, value in meta.items():
        _check_json(key, value)
    return dict(meta)


def _check_json(path: str, value: object) -> None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_json(f"{path}[{number}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_json(f"{path}.{key}", item)
    else:
        raise BatchError(
            f"meta '{path}' is a {type(value).__name__}; metadata holds JSON values only (numbers, text, lists, dicts)"
        )


def _object_array(values: Sequence[object]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # not array[:] = values, which would spread nested lists over axes
        array[row] = value
    return array
