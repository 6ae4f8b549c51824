"""Safetensors in and out of every layout, bit for bit, reading and holding no more than needed; folders compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from resharding_world import distinct_tensors, megatron_world, shards_of, small_shape
from safetensors.torch import load_file, save_file
from tiny_model import save_tiny_model
from torch import Tensor

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape, PipelineCut, load_hf_config, model_shape
from cfpo_hybrid.models.stages import EQUAL_STAGES
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Piece, Rectangle, ShardSpec
from workers.megatron.hf_files import TensorFiles
from workers.megatron.hf_weights import differing_tensors, export_hf, load_hf


def empty_parameters(specs: list[ShardSpec], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {spec.name: torch.full(spec.shape, torch.nan, dtype=dtype) for spec in specs}


def write_source(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen2", "torch_dtype": "bfloat16"}')
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def read_folder(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", [ParallelLayout(), ParallelLayout(tp=2, pp=3), ParallelLayout(tp=4)])
def test_a_folder_loads_into_every_layout(tmp_path, tied, layout):
    shape = small_shape(tied_embeddings=tied)
    tensors = distinct_tensors(shape)
    folder = write_source(tmp_path / "source", tensors)
    for specs in megatron_world(shape, layout):
        parameters = empty_parameters(specs)
        load_hf(folder, specs, parameters)
        expected = shards_of(specs, tensors)  # padding 0
        assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_several_files_and_another_dtype(tmp_path):
    shape = small_shape()
    tensors = distinct_tensors(shape, torch.bfloat16)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"part{number}.safetensors")
    weight_map = {name: f"part{index % 2}.safetensors" for index, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    specs = megatron_world(shape, ParallelLayout(tp=2))[1]
    parameters = empty_parameters(specs)
    load_hf(tmp_path, specs, parameters)
    expected = shards_of(specs, {name: tensor.float() for name, tensor in tensors.items()})
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_folders_that_cannot_be_loaded(tmp_path):
    shape = small_shape()
    specs = megatron_world(shape, ParallelLayout())[0]
    with pytest.raises(ModelError, match="neither"):
        load_hf(tmp_path, specs, empty_parameters(specs))
    tensors = distinct_tensors(shape)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no tensor model\.norm\.weight"):
        load_hf(tmp_path, specs, empty_parameters(specs))
    save_file({**tensors, "model.norm.weight": norm[:5]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*too small"):
        load_hf(tmp_path, specs, empty_parameters(specs))


@dataclass(frozen=True)
class Stop:
    """One layout on the way of a model, for a world of four."""

    layout: ParallelLayout
    cut: PipelineCut = EQUAL_STAGES
    max_file_bytes: int = 1 << 30


STOPS = (
    Stop(ParallelLayout(tp=2, pp=2), PipelineCut(first=1), max_file_bytes=4000),
    Stop(ParallelLayout(tp=4), max_file_bytes=20_000),
    Stop(ParallelLayout(dp=2, pp=2), PipelineCut(first=4, chunks=2)),
    Stop(ParallelLayout(pp=4), PipelineCut(last=3), max_file_bytes=3000),
)
"""19 rows of vocabulary do not divide by 2 or 4, nor 6 layers by 4."""


def pass_through(source: Path, shape: ModelShape) -> None:
    """Loads and exports, one layout after the other, each from the files of the one before."""
    for number, stop in enumerate(STOPS):
        world = megatron_world(shape, stop.layout, stop.cut)
        specs = world[dist.get_rank()]
        parameters = empty_parameters(specs)
        load_hf(source, specs, parameters)
        out = source.parent / f"out{number}"
        export_hf(
            out,
            source,
            shape=shape,
            parameters=parameters,
            specs_of_rank=world.__getitem__,
            max_file_bytes=stop.max_file_bytes,
        )
        source = out


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_through_four_layouts_of_four_processes(tmp_path, tied):
    shape = small_shape(num_layers=6, tied_embeddings=tied)
    tensors = distinct_tensors(shape)
    run_gloo(4, pass_through, write_source(tmp_path / "source", tensors), shape, timeout=600)
    for number, stop in enumerate(STOPS):
        out = tmp_path / f"out{number}"
        found = read_folder(out)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert differing_tensors(tmp_path / "source", out, tied=tied) == []
        # No rank held more than one file, header of names aside.
        assert all(
            sum(t.nbytes for t in load_file(f).values()) <= stop.max_file_bytes for f in out.glob("*.safetensors")
        )
    out = tmp_path / "out0"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * shape.num_parameters
    assert all(name in load_file(out / file) for name, file in index["weight_map"].items())


def test_an_exported_folder_opens_in_transformers(tmp_path):
    # Not at the top: the processes of the test above import this module too, and transformers takes seconds.
    from transformers import AutoModelForCausalLM

    source, out = tmp_path / "source", tmp_path / "out"
    model = save_tiny_model(source, "llama", tie_word_embeddings=True)
    (source / "tokenizer.json").write_text("{}")
    shape = model_shape(load_hf_config(str(source)))
    world = megatron_world(shape, ParallelLayout())
    parameters = empty_parameters(world[0])
    load_hf(source, world[0], parameters)
    export_hf(out, source, shape=shape, parameters=parameters, specs_of_rank=world.__getitem__)
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    again = AutoModelForCausalLM.from_pretrained(out)
    expected = dict(model.named_parameters())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.named_parameters())


def export_one(out: Path, source: Path, tensors: dict[str, Tensor], shape: ModelShape, **options: Any) -> None:
    """By one process that holds the whole model."""
    world = megatron_world(shape, ParallelLayout())
    parameters = shards_of(world[0], tensors)
    export_hf(out, source, shape=shape, parameters=parameters, specs_of_rank=world.__getitem__, **options)


def test_a_used_folder_is_replaced_whole(tmp_path: Path):
    """Many shards with an index first, one file after them: nothing of the first is left to be read back."""
    shape = small_shape()
    old, new = distinct_tensors(shape), {name: tensor + 1 for name, tensor in distinct_tensors(shape).items()}
    source, out = write_source(tmp_path / "source", old), tmp_path / "out"
    export_one(out, source, old, shape, max_file_bytes=4000)
    assert len(list(out.glob("*.safetensors"))) > 1
    (out / "pytorch_model.bin").write_text("older still")
    export_one(out, source, new, shape)
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer_config.json"]
    found = read_folder(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in new.items())
    export_one(out, source, old, shape, max_file_bytes=4000)
    assert not (out / "model.safetensors").exists()
    with TensorFiles(out) as files:
        assert all(torch.equal(files.whole(name), tensor) for name, tensor in old.items())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_an_export_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shape = small_shape()
    tensors = distinct_tensors(shape)
    source, out = write_source(tmp_path / "source", tensors), tmp_path / "out"
    export_one(out, source, tensors, shape)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk is full"):
        patched.setattr("workers.megatron.hf_weights.write_companions", full_disk)
        export_one(out, source, changed, shape, max_file_bytes=4000)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    export_one(out, source, changed, shape)  # over what broke off
    assert torch.equal(read_folder(out)["model.norm.weight"], changed["model.norm.weight"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def full_disk(*_: object) -> None:
    raise OSError("the disk is full")


def test_a_folder_may_be_exported_into_itself_and_through_a_link(tmp_path: Path):
    shape = small_shape()
    tensors = distinct_tensors(shape)
    source, link = write_source(tmp_path / "source", tensors), tmp_path / "link"
    link.symlink_to(source)
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    export_one(link, source, changed, shape)
    assert link.is_symlink() and not source.is_symlink()
    assert torch.equal(read_folder(source)["model.norm.weight"], changed["model.norm.weight"])
    assert (source / "tokenizer_config.json").is_file()


ROWS, COLUMNS = 2**15, 2**11  # of a tensor of which little is read


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
