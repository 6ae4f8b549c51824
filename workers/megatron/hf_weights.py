"""Hugging Face safetensors in and out of any layout, by the same shard specs that resharding uses.

Loading reads only the byte ranges that a rank holds. Export never has more of the model on a rank than one file of it:
the tensors are cut into files of bounded size, and in each round every rank assembles and writes one of them.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.shards import hf_shapes
from cfpo_hybrid.resharding import Rectangle, ShardSpec, build_plan
from cfpo_hybrid.resharding.transfer import Resharder
from workers.megatron.hf_files import INDEX_FILE, SINGLE_FILE, TensorFiles

MAX_FILE_BYTES = 2 << 30
BUCKET_BYTES = 64 << 20
COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
"""Tokenizer and generation files that an exported folder takes over from its source."""


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


class WeightHolder(Protocol):
    """What an engine must tell to have its weights exported."""

    shape: ModelShape

    def parameters_by_name(self) -> dict[str, Tensor]:
        """This rank's parameters."""
        ...

    def specs_of_rank(self, rank: int) -> list[ShardSpec]:
        """What the parameters of any rank hold."""
        ...


def export_hf(out: Path, holder: WeightHolder, source: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Writes a Hugging Face folder; collective over the default process group, if there is one.

    Args:
        out: made if absent; on storage that all ranks share.
        holder: whose weights.
        source: the folder the model came from; config.json and the tokenizer are taken over.
        max_file_bytes: of one safetensors file, and so of what a rank assembles at one time.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parameters = holder.parameters_by_name()
    dtype = next(iter(parameters.values())).dtype
    files = _cut(hf_shapes(holder.shape), max_file_bytes // dtype.itemsize)
    names = _file_names(len(files))
    sources = [holder.specs_of_rank(other) for other in range(world_size)]
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(files), world_size):
        wanted = files[first : first + world_size]
        wanted += [{}] * (world_size - len(wanted))
        tensors = _assemble(sources, wanted, parameters, rank)
        if tensors:
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, out / names[first + rank], _METADATA)
    if rank == 0:
        _write_index(out, files, names, dtype)
        _copy_companions(source, out, dtype)
    if world_size > 1:
        dist.barrier()


_METADATA = {"format": "pt"}
_Shapes = dict[str, tuple[int, ...]]


def _assemble(
    sources: Sequence[Sequence[ShardSpec]], wanted: Sequence[_Shapes], parameters: Mapping[str, Tensor], rank: int
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


def _cut(shapes: _Shapes, max_elements: int) -> list[_Shapes]:
    """Tensors in model order, in files of at most so many elements; a larger tensor gets a file of its own."""
    files: list[_Shapes] = [{}]
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


def _write_index(out: Path, files: Sequence[_Shapes], names: Sequence[str], dtype: torch.dtype) -> None:
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
