"""Hugging Face safetensors in and out of any layout, by the same shard specs that resharding uses.

Loading reads only the byte ranges that a rank holds. Export never has more of the model on a rank than one file of it:
the tensors are cut into files of bounded size, and in each round every rank assembles and writes one of them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.families import EMBEDDING, LM_HEAD
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.resharding import Rectangle, ShardSpec, build_plan
from cfpo_hybrid.resharding.transfer import Resharder
from workers.megatron.hf_companions import write_companions
from workers.megatron.hf_files import INDEX_FILE, RECOMPUTED, SINGLE_FILE, TensorFiles

MAX_FILE_BYTES = 2 << 30
BUCKET_BYTES = 64 << 20
Shapes = dict[str, tuple[int, ...]]


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
    texts: Mapping[str, str] = MappingProxyType({}),
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a Hugging Face folder; collective over the default process group, if there is one.

    It is written beside ``out`` and takes its place once it is complete: whoever reads ``out`` meanwhile, or after an
    export that broke off, finds what was there before, and never files of both.

    Args:
        out: made, or replaced with all it holds; on storage that all ranks share. It may be ``source``.
        source: the folder the model came from; config.json, the tokenizer and licences are taken over.
        shape: of the model.
        parameters: this rank's, by the names of its specs.
        specs_of_rank: what the parameters of any rank hold.
        texts: files that are written instead of the source's, by name (``write_companions``).
        max_file_bytes: of one safetensors file, and so of what a rank assembles at one time.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dtype = next(iter(parameters.values())).dtype
    files = _cut(hf_shapes(shape), max_file_bytes // dtype.itemsize)
    names = _file_names(len(files))
    sources = [specs_of_rank(other) for other in range(world_size)]
    out = Path(os.path.realpath(out))  # what a link leads to is replaced, not the link
    unfinished = out.with_name(out.name + ".unfinished")
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    _wait_for_all()
    for first in range(0, len(files), world_size):
        wanted = files[first : first + world_size]
        wanted += [{}] * (world_size - len(wanted))
        tensors = _assemble(sources, wanted, parameters, rank)
        if tensors:
            on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
            save_file(on_host, unfinished / names[first + rank], metadata={"format": "pt"})
    _wait_for_all()
    if rank == 0:
        _write_index(unfinished, files, names, dtype)
        write_companions(source, unfinished, shape, dtype, texts)
        _replace(out, unfinished)
    _wait_for_all()


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
            if RECOMPUTED.fullmatch(name):
                continue
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


def _replace(folder: Path, new: Path) -> None:
    """Puts a complete folder into another's place, by renaming both: each has all its files at any moment."""
    old = folder.with_name(folder.name + ".replaced")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


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
