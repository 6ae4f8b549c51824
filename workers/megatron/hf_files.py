"""The files of a Hugging Face folder: tensors that are read slice by slice, and what makes a folder unusable.

What is wrong is found from the headers of the files, before anything starts.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.families import EMBEDDING, LM_HEAD
from cfpo_hybrid.models.hf_config import is_lfs_pointer
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.resharding import Piece, Rectangle

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

STORED_DTYPES = ("BF16", "F16", "F32", "F64")
"""What weights may be stored in; anything else is a code that a scale belongs to."""

RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Tensors of older checkpoints that follow from config.json."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that a tokenizer can be read from."""

NAMED = 3
"""Tensors of a kind of mistake that a message names."""

COMPARED_ROWS = 4096
"""Of two heads at one time."""


class TensorFiles:
    """The safetensors files of a folder, each opened when first needed.

    Raises:
        ModelError: the folder has none; later, a file is damaged or missing.
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

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """As the file's header has it."""
        return tuple(self._view(name)[0].get_shape())

    def file_of(self, name: str) -> Path:
        """Where a tensor is."""
        return self._view(name)[1]

    def stored_dtype(self, name: str) -> str:
        """As safetensors writes it, e.g. ``"BF16"``."""
        return self._view(name)[0].get_dtype()

    def _view(self, name: str) -> tuple[Any, Path]:
        file = self._file_of.get(name)
        if file is None:
            raise ModelError(f"the safetensors in '{self._folder}' have no tensor {name}")
        try:
            return self._opened(file).get_slice(name), file
        except SafetensorError:
            raise ModelError(
                f"'{file}' has no tensor {name}, though {INDEX_FILE} says so; fetch or copy the model anew"
            ) from None

    def _opened(self, file: Path) -> Any:
        if file not in self._open:
            if not file.is_file():
                raise ModelError(f"'{file}' is missing, which {INDEX_FILE} names; fetch or copy the model anew")
            try:
                self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"'{file}' {_damage(file, error)}") from None
        return self._open[file]

    def _files_by_tensor(self) -> Iterator[tuple[str, Path]]:
        index = self._folder / INDEX_FILE
        if index.exists():
            try:
                weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (KeyError, TypeError, ValueError) as error:
                raise ModelError(f"'{index}' {_damage(index, error)}") from None
            yield from ((name, self._folder / file) for name, file in weight_map.items())
            return
        single = self._folder / SINGLE_FILE
        if not single.exists():
            others = sorted(
                file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in self._folder.glob(pattern)
            )
            instead = f" but {', '.join(others[:NAMED])}" if others else ""
            raise ModelError(
                f"'{self._folder}' has neither {SINGLE_FILE} nor {INDEX_FILE}{instead}; fetch the weights as safetensors, "
                "or convert them with transformers' save_pretrained, which writes these"
            )
        yield from ((name, single) for name in self._opened(single).keys())  # noqa: SIM118


def check_weights(folder: Path, shape: ModelShape) -> None:
    """Refuses weights that are not those of the model: found from the headers, and from the head where it may be tied.

    Args:
        folder: with safetensors.
        shape: what config.json says.

    Raises:
        ModelError: files that are missing or damaged; tensors that are missing, of another shape, quantised or unknown,
            which would train another model; or a head of its own where config.json ties it to the embedding.
    """
    expected = hf_shapes(shape)
    with TensorFiles(folder) as files:
        found = set(files.names)
        copies = {LM_HEAD} if shape.tied_embeddings and LM_HEAD in found else set()
        unknown = [
            name for name in files.names if name not in expected.keys() | copies and not RECOMPUTED.fullmatch(name)
        ]
        missing = [name for name in expected if name not in found]
        present = [name for name in expected if name in found]
        quantised = [name for name in present if files.stored_dtype(name) not in STORED_DTYPES]
        misshapen = [name for name in present if files.stored_shape(name) != expected[name]]
        problems = []
        if quantised:
            stored = files.stored_dtype(quantised[0])
            problems.append(
                f"quantised: {_some(quantised)} stored as {stored}; take the checkpoint in bfloat16 that it was made from"
            )
        elif unknown:
            problems.append(f"not a part of a {shape.family} model: {_some(unknown)}; training would leave it out")
        if missing:
            hint = "; set tie_word_embeddings=true if the embedding is the head" if missing == [LM_HEAD] else ""
            problems.append(f"missing: {_some(missing)}{hint}")
        if misshapen and not quantised:
            name = misshapen[0]
            problems.append(
                f"of another shape than config.json says: {_some(misshapen)}; {name} has {list(files.stored_shape(name))} "
                f"instead of {list(expected[name])}"
            )
        if copies and not problems and not _same_head(files):
            problems.append(
                f"{LM_HEAD} in '{files.file_of(LM_HEAD)}' differs from {EMBEDDING}, but config.json ties them "
                "(tie_word_embeddings=true); set that false to keep this head, or remove the tensor"
            )
    if problems:
        raise ModelError(f"the safetensors in '{folder}' do not fit its config.json: {'; '.join(problems)}")


def check_companions(folder: Path, *, tokenizer: bool = True) -> None:
    """Refuses a folder without a tokenizer, or with damaged files beside the weights; to open the tokenizer may find more.

    Args:
        folder: of a model.
        tokenizer: whether there must be one.

    Raises:
        ModelError: there is none, or a file is damaged.
    """
    if tokenizer and not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ModelError(
            f"'{folder}' has no tokenizer (none of {', '.join(VOCABULARY_FILES)}); copy the files of the model's "
            "tokenizer into it"
        )
    json_files = {*folder.glob("*token*.json"), *folder.glob("vocab.json"), *folder.glob("generation_config.json")}
    for file in sorted(json_files | {folder / name for name in VOCABULARY_FILES if (folder / name).is_file()}):
        try:
            if is_lfs_pointer(file) or not file.stat().st_size:
                raise ValueError("no content")
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"'{file}' {_damage(file, error)}") from None


def _same_head(files: TensorFiles) -> bool:
    """Whether the head and the embedding hold the same numbers; some rows of both are read at one time."""
    rows, columns = files.stored_shape(EMBEDDING)
    if files.stored_shape(LM_HEAD) != (rows, columns):
        return False
    for start in range(0, rows, COMPARED_ROWS):
        area = Rectangle((start, 0), (min(COMPARED_ROWS, rows - start), columns))
        head, embedding = (files.read(Piece(name, area, (0, 0))) for name in (LM_HEAD, EMBEDDING))
        if not torch.equal(head, embedding.to(head.dtype)):
            return False
    return True


def _some(names: list[str]) -> str:
    further = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{further}"


def _damage(file: Path, error: Exception) -> str:
    """What is the matter with a file that cannot be read."""
    if is_lfs_pointer(file):
        return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if not file.stat().st_size:
        return "is empty; fetch or copy the model anew"
    return f"is damaged or cut short ({error}); fetch or copy the model anew"
