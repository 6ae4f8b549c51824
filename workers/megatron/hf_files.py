"""The safetensors of a Hugging Face folder, read tensor by tensor or rectangle by rectangle, and compared."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.families import EMBEDDING, LM_HEAD
from cfpo_hybrid.resharding import Piece

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorFiles:
    """The safetensors files of a folder, each opened when first needed.

    Raises:
        ModelError: the folder has none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._file_of = dict(self._files_by_tensor())

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors."""
        return tuple(self._file_of)

    def read(self, piece: Piece) -> Tensor:
        """A rectangle of a tensor; only its bytes are read.

        Raises:
            ModelError: there is no such tensor, or the rectangle lies outside.
        """
        view, file = self._view(piece.hf_name)
        stop = [start + size for start, size in zip(piece.hf.start, piece.hf.size, strict=True)]
        shape = view.get_shape()
        if len(shape) != len(stop) or any(end > size for end, size in zip(stop, shape, strict=True)):
            raise ModelError(
                f"tensor {piece.hf_name} in '{file}' has shape {shape}, too small for what config.json says: "
                f"rectangle {piece.hf} is needed"
            )
        return view[piece.hf.slices]

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        return self._view(name)[0][:]

    def stored_dtype(self, name: str) -> str:
        """As safetensors writes it, e.g. ``"BF16"``."""
        return self._view(name)[0].get_dtype()

    def _view(self, name: str) -> tuple[Any, Path]:
        file = self._file_of.get(name)
        if file is None:
            raise ModelError(f"the safetensors in '{self._folder}' have no tensor {name}")
        return self._opened(file).get_slice(name), file

    def _opened(self, file: Path) -> Any:
        if file not in self._open:
            if not file.is_file():
                raise ModelError(f"'{file}' is missing, which {INDEX_FILE} names; fetch or copy the model anew")
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
        return self._open[file]

    def _files_by_tensor(self) -> Iterator[tuple[str, Path]]:
        index = self._folder / INDEX_FILE
        if index.exists():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            yield from ((name, self._folder / file) for name, file in weight_map.items())
            return
        single = self._folder / SINGLE_FILE
        if not single.exists():
            raise ModelError(
                f"'{self._folder}' has neither {SINGLE_FILE} nor {INDEX_FILE}; convert its weights with transformers' "
                "save_pretrained, which writes safetensors"
            )
        yield from ((name, single) for name in self._opened(single).keys())  # noqa: SIM118


def differing_tensors(source: Path, copy: Path, *, tied: bool) -> list[str]:
    """The tensors of a folder that another one does not have bit for bit, each with what is wrong; one at a time is read.

    A tensor of another dtype is equal when the source's, cast to that dtype, is.

    Args:
        source: the folder that is right.
        copy: the folder that is compared.
        tied: the head is the embedding; a source may have it under both names.
    """
    with TensorFiles(source) as expected, TensorFiles(copy) as found:
        wrong = [f"{name}: not in the source" for name in found.names if name not in expected.names]
        for name in expected.names:
            other = EMBEDDING if tied and name == LM_HEAD and name not in found.names else name
            if other not in found.names:
                wrong.append(f"{name}: not written")
                continue
            reason = _difference(expected.whole(name), found.whole(other))
            if reason:
                wrong.append(f"{name}: {reason}")
    return wrong


def _difference(expected: Tensor, found: Tensor) -> str | None:
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    expected = expected.to(found.dtype)
    if torch.equal(_bits(expected), _bits(found)):
        return None
    different = int((_bits(expected).view(-1, found.itemsize) != _bits(found).view(-1, found.itemsize)).any(1).sum())
    return f"{different} of {found.numel()} numbers differ"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
