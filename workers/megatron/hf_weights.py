"""Hugging Face safetensors in and out of any layout, by the same shard specs that resharding uses.

Loading reads only the byte ranges that a rank holds. Export never has more of the model on a rank than one file of it:
the tensors are cut into files of bounded size, and in each round every rank assembles and writes one of them.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.families import EMBEDDING, LM_HEAD
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.resharding import Piece, Rectangle, ShardSpec, build_plan
from cfpo_hybrid.resharding.transfer import Resharder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_FILE_BYTES = 2 << 30
BUCKET_BYTES = 64 << 20
COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
"""Tokenizer and generation files that an exported folder takes over from its source."""

Shapes = dict[str, tuple[int, ...]]


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


@torch.no_grad()
def load_hf(folder: Path, specs: Iterable[ShardSpec], parameters: Mapping[str, Tensor]) -> None:
    """Fills local parameters from a Hugging Face folder; padding becomes zero.

    Args:
        folder: with ``model.safetensors`` or an index of several files.
        specs: what the local parameters hold.
        parameters: by the names of the specs; written in place, cast to their dtype.

    Raises:
        ModelError: no safetensors, a missing tensor, or one whose shape is not that of config.json.
    """
    with TensorFiles(folder) as files:
        for spec in specs:
            target = parameters[spec.name]
            for piece in spec.pieces:
                target[piece.local.slices].copy_(files.read(piece))
            for area in spec.padding:
                target[area.slices].zero_()


def export_hf(
    out: Path,
    source: Path,
    *,
    shape: ModelShape,
    parameters: Mapping[str, Tensor],
    specs_of_rank: Callable[[int], Sequence[ShardSpec]],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a Hugging Face folder; collective over the default process group, if there is one.

    Args:
        out: made if absent; on storage that all ranks share.
        source: the folder the model came from; config.json and the tokenizer are taken over.
        shape: of the model.
        parameters: this rank's, by the names of its specs.
        specs_of_rank: what the parameters of any rank hold.
        max_file_bytes: of one safetensors file, and so of what a rank assembles at one time.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dtype = next(iter(parameters.values())).dtype
    files = _cut(hf_shapes(shape), max_file_bytes // dtype.itemsize)
    names = _file_names(len(files))
    sources = [specs_of_rank(other) for other in range(world_size)]
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(files), world_size):
        wanted = files[first : first + world_size]
        wanted += [{}] * (world_size - len(wanted))
        tensors = _assemble(sources, wanted, parameters, rank)
        if tensors:
            on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
            save_file(on_host, out / names[first + rank], metadata={"format": "pt"})
    if rank == 0:
        _write_index(out, files, names, dtype)
        _copy_companions(source, out, dtype)
    if world_size > 1:
        dist.barrier()


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


def _assemble(
    sources: Sequence[Sequence[ShardSpec]], wanted: Sequence[Shapes], parameters: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """Full tensors from all ranks' shards: each rank gets those it wants."""
    destinations = [[ShardSpec.of_whole_tensor(name, shape) for name, shape in shapes.items()] for shapes in wanted]
    plan = build_plan(sources, destinations, ranks_per_node=len(sources))
    sample = next(iter(parameters.values()))
    tensors = {
        name: torch.empty(shape, dtype=sample.dtype, device=sample.device) for name, shape in wanted[rank].items()
    }
    Resharder(plan, rank=rank, dtype=sample.dtype, bucket_bytes=BUCKET_BYTES).run(parameters, tensors)
    return tensors


def _cut(shapes: Shapes, max_elements: int) -> list[Shapes]:
    """Tensors in model order, in files of at most so many elements; a larger tensor gets a file of its own."""
    files: list[Shapes] = [{}]
    held = 0
    for name, shape in shapes.items():
        volume = Rectangle.whole(shape).volume
        if files[-1] and held + volume > max_elements:
            files.append({})
            held = 0
        files[-1][name] = shape
        held += volume
    return files


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(out: Path, files: Sequence[Shapes], names: Sequence[str], dtype: torch.dtype) -> None:
    if len(files) == 1:
        return
    elements = sum(Rectangle.whole(shape).volume for shapes in files for shape in shapes.values())
    weight_map = {name: file for shapes, file in zip(files, names, strict=True) for name in shapes}
    index = {"metadata": {"total_size": elements * dtype.itemsize}, "weight_map": weight_map}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_companions(source: Path, out: Path, dtype: torch.dtype) -> None:
    for file in sorted(source.iterdir()):
        if file.suffix in COPIED_SUFFIXES and file.name not in (INDEX_FILE, "config.json"):
            shutil.copyfile(file, out / file.name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the name of transformers 4
    config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
