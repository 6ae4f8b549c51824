"""Safetensors folders: only the bytes of a rectangle are read, and two folders are compared bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.resharding import Piece, Rectangle
from workers.megatron.hf_files import TensorFiles, differing_tensors

ROWS, COLUMNS = 2**15, 2**11


def write_sparse_tensor(folder: Path) -> Path:
    """A safetensors file with one fp32 tensor of 256 MiB, all of it a hole that takes no room."""
    size = 4 * ROWS * COLUMNS
    header = json.dumps({"w": {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    file = folder / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    return file


def bytes_read() -> int:
    """By system calls of this process so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def bytes_touched(file: Path) -> int:
    """Of the file's memory maps in this process."""
    touched, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            touched += 1024 * int(line.split()[1])
    return touched


def test_only_the_bytes_of_a_rectangle_are_read(tmp_path: Path):
    file = write_sparse_tensor(tmp_path)
    with TensorFiles(tmp_path) as files:
        before = bytes_read()
        part = files.read(Piece("w", Rectangle((20_000, 0), (16, COLUMNS)), (0, 0)))
        assert part.shape == (16, COLUMNS)
        # 128 KiB are wanted; the system reads some pages around them, and /proc itself is read to see it.
        assert bytes_touched(file) + bytes_read() - before < 8 * 2**20


def folder_of(path: Path, **tensors: Tensor) -> Path:
    path.mkdir()
    save_file({name.replace("__", "."): tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def test_differences_are_named_with_what_is_wrong(tmp_path: Path):
    a, b = torch.arange(6.0).view(2, 3), torch.tensor([torch.nan, 0.0])
    source = folder_of(tmp_path / "source", a=a, b=b, c=b, d=b)
    assert differing_tensors(source, folder_of(tmp_path / "same", a=a, b=b, c=b, d=b), tied=False) == []
    changed = a.clone()
    changed[1] += 1
    # Minus zero equals zero, but not bit for bit.
    other = folder_of(tmp_path / "other", a=changed, b=b * torch.tensor([1.0, -1.0]), c=b[:1], e=b)
    assert differing_tensors(source, other, tied=False) == [
        "e: not in the source",
        "a: 3 of 6 numbers differ",
        "b: 1 of 2 numbers differ",
        "c: shape [1] instead of [2]",
        "d: not written",
    ]


def test_a_cast_and_a_head_under_two_names_are_no_difference(tmp_path: Path):
    weight = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    source = folder_of(tmp_path / "source", lm_head__weight=weight.clone(), model__embed_tokens__weight=weight)
    copy = folder_of(tmp_path / "copy", model__embed_tokens__weight=weight.float())
    assert differing_tensors(source, copy, tied=True) == []
    assert differing_tensors(source, copy, tied=False) == ["lm_head.weight: not written"]


def test_an_index_that_names_a_missing_file(tmp_path: Path):
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with TensorFiles(tmp_path) as files, pytest.raises(ModelError, match=r"00001-of-00001\.safetensors' is missing"):
        files.whole("w")
