"""Training state on disk as rectangles of Hugging Face tensors, which any layout can cut anew.

state-rank3.safetensors    what one rank wrote; its tensors are named kind, Hugging Face name and rectangle, e.g.
                           exp_avg/model.layers.0.self_attn.q_proj.weight[0:64, 0:128]
state.index.json           for every Hugging Face name the rectangles there are, and the file that holds each
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.resharding import Piece, Rectangle
from cfpo_hybrid.resharding.rectangle import range_rectangles

INDEX_FILE = "state.index.json"


@dataclass(frozen=True, slots=True)
class HeldPart:
    """A rectangle of a Hugging Face tensor and a live view of its values."""

    hf_name: str
    area: Rectangle
    values: Tensor


def held_parts(shape: tuple[int, ...], pieces: Iterable[Piece], values: Tensor, first: int = 0) -> Iterator[HeldPart]:
    """What a stretch of a flattened local parameter holds, as views; padding is left out.

    Args:
        shape: of the local parameter.
        pieces: what the parameter holds, or those pieces of it that are wanted.
        values: consecutive elements of the parameter, of any shape, in contiguous memory.
        first: index of their first in the flattened parameter.
    """
    pieces, flat = list(pieces), values.view(-1)
    offset = 0
    for block in range_rectangles(shape, first, first + flat.numel()):
        view = flat[offset : offset + block.volume].view(block.size)
        offset += block.volume
        for piece in pieces:
            common = block.intersect(piece.local)
            if common is not None:
                area = common.moved(piece.local_start, piece.hf.start)
                yield HeldPart(piece.hf_name, area, view[_within(common, block)])


def write_parts(directory: Path, rank: int, parts: Mapping[str, Sequence[HeldPart]]) -> list[list[Any]]:
    """Writes this rank's file.

    Args:
        directory: of the checkpoint.
        rank: this process's.
        parts: by kind; every kind has the same rectangles.

    Returns:
        Rows of the index: Hugging Face name, file, start and size of each rectangle.
    """
    file = f"state-rank{rank}.safetensors"
    tensors = {
        _key(kind, part.hf_name, part.area): part.values.detach().to("cpu", copy=True).contiguous()
        for kind, held in parts.items()
        for part in held
    }
    save_file(tensors, directory / file)
    held = next(iter(parts.values()), ())
    return [[part.hf_name, file, list(part.area.start), list(part.area.size)] for part in held]


def write_index(directory: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes the index of all ranks' rows."""
    index: dict[str, list[list[Any]]] = defaultdict(list)
    for hf_name, *place in rows:
        index[hf_name].append(place)
    (directory / INDEX_FILE).write_text(json.dumps(index) + "\n", encoding="utf-8")


class StateFiles:
    """What a checkpoint holds, read rectangle by rectangle; a file is opened when something of it is first needed.

    Raises:
        DataError: there is no index.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        index = directory / INDEX_FILE
        if not index.is_file():
            raise DataError(f"{directory} holds no policy checkpoint ({INDEX_FILE} is missing)")
        self._stored: dict[str, list[tuple[str, Rectangle]]] = {
            name: [(file, Rectangle(tuple(start), tuple(size))) for file, start, size in places]
            for name, places in json.loads(index.read_text(encoding="utf-8")).items()
        }

    def __enter__(self) -> "StateFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fill(self, kind: str, part: HeldPart) -> None:
        """Reads the values of a part into its view, cast to its dtype; only their bytes are read.

        Raises:
            DataError: a part of the rectangle is in no file, or a file is missing.
        """
        missing = [part.area]
        for file, stored in self._stored.get(part.hf_name, ()):
            common = stored.intersect(part.area)
            if common is not None:
                found = self._opened(file).get_slice(_key(kind, part.hf_name, stored))
                part.values[_within(common, part.area)].copy_(found[_within(common, stored)])
                missing = [rest for area in missing for rest in area.minus(common)]
        if missing:
            raise DataError(
                f"the checkpoint in {self._directory} has no {part.hf_name}{missing[0]}; it is damaged or of another "
                "model: resume from another one"
            )

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            path = self._directory / file
            if not path.is_file():
                raise DataError(f"the checkpoint in {self._directory} lacks {file}; resume from another one")
            self._open[file] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[file]


def _key(kind: str, hf_name: str, area: Rectangle) -> str:
    return f"{kind}/{hf_name}{area}"


def _within(part: Rectangle, frame: Rectangle) -> tuple[slice, ...]:
    return part.moved(frame.start, (0,) * len(frame.start)).slices
