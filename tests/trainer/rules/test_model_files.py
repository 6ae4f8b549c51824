"""A model that cannot be trained is refused by `cfpo check`, which names the file or the tensor."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError, ModelError
from trainer import cli
from trainer.export import export
from trainer.rules import load_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"
WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PROJECTION = "model.layers.0.self_attn.o_proj.weight"


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file of the model's folder."""
    return lambda model: (model / name).write_bytes(content.encode() if isinstance(content, str) else content) and None


def cut_short(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:-1000]) and None


def only_bin(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Changes tensors of the file; None takes one out."""

    def change(model: Path) -> None:
        found = load_file(model / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
        save_file({name: tensor for name, tensor in found.items() if tensor is not None}, model / WEIGHTS)

    return change


def settings(**changes: object) -> Callable[[Path], None]:
    """Changes config.json."""

    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def sharded(model: Path) -> None:
    """The index names two files, of which one is there."""
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    names = list(load_file(model / "model-00001-of-00002.safetensors"))
    files = ["model-00001-of-00002.safetensors"] * (len(names) - 1) + ["model-00002-of-00002.safetensors"]
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict(zip(names, files, strict=True))}))


ones = torch.ones
LAYER = "model__layers__0__self_attn__o_proj__"

DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights a pointer": (put(WEIGHTS, POINTER), r"model\.safetensors' is a Git LFS pointer.*git lfs pull"),
    "weights empty": (put(WEIGHTS, ""), r"model\.safetensors' is empty"),
    "weights cut short": (cut_short(WEIGHTS), r"model\.safetensors' is damaged or cut short"),
    "weights no safetensors": (put(WEIGHTS, b"PK\x03\x04" * 100), r"model\.safetensors' is damaged"),
    "weights a web page": (put(WEIGHTS, "<!doctype html>" * 9), r"model\.safetensors' is damaged"),
    "only .bin": (only_bin, r"neither model\.safetensors .* but pytorch_model\.bin; .*convert"),
    "no weights": (without(WEIGHTS), r"neither model\.safetensors nor"),
    "a shard missing": (sharded, r"model-00002-of-00002\.safetensors' is missing"),
    "index a pointer": (put(f"{WEIGHTS}.index.json", POINTER), r"index\.json' is a Git LFS pointer"),
    "index without map": (put(f"{WEIGHTS}.index.json", "{}"), r"index\.json' is damaged"),
    "config a pointer": (put("config.json", POINTER), r"config\.json is not JSON: a Git LFS pointer"),
    "no tokenizer": (without("tokenizer.json"), r"has no tokenizer \(none of tokenizer\.json"),
    "tokenizer a pointer": (put("tokenizer.json", POINTER), r"tokenizer\.json' is a Git LFS pointer"),
    "tokenizer empty": (put("tokenizer.json", ""), r"tokenizer\.json' is empty"),
    "tokenizer cut short": (put("tokenizer.json", '{"model": {"vocab": {"a": 1'), r"tokenizer\.json' is damaged"),
    "settings of the tokenizer": (put("tokenizer_config.json", POINTER), r"tokenizer_config\.json' is a Git LFS"),
    "generation settings": (put("generation_config.json", "{"), r"generation_config\.json' is damaged"),
    "quantised": (
        settings(quantization_config={"quant_method": "fp8"}),
        r"quantization_config \(method fp8\).*bfloat16",
    ),
    "compressed": (settings(compression_config={"format": "int4"}), r"compression_config \(method int4\)"),
    "float8 with scales": (
        tensors(**{f"{LAYER}weight": ones(128, 128).to(torch.float8_e4m3fn), f"{LAYER}weight_scale_inv": ones(1, 1)}),
        rf"quantised: {PROJECTION} stored as F8_E4M3",
    ),
    "int8": (tensors(**{f"{LAYER}weight": ones(128, 128).to(torch.int8)}), rf"quantised: {PROJECTION} stored as I8"),
    "int4 codes": (
        tensors(**{f"{LAYER}weight": None, f"{LAYER}qweight": ones(16, 128).int(), f"{LAYER}scales": ones(1, 128)}),
        rf"not a part of a qwen2 model: .*qweight, .*scales; .*missing: {PROJECTION}",
    ),
    "a bias that the family lacks": (
        tensors(**{f"{LAYER}bias": ones(128)}),
        r"not a part .*o_proj\.bias; training would",
    ),
    "another shape": (tensors(model__norm__weight=ones(64)), r"model\.norm\.weight has \[64\] instead of \[128\]"),
    "a larger vocabulary": (
        tensors(model__embed_tokens__weight=ones(128, 128)),
        r"embed_tokens\.weight has \[128, 128\] instead of \[100, 128\]",
    ),
    "a head of its own": (
        tensors(lm_head__weight=ones(100, 128)),
        rf"{HEAD} in .* differs from {EMBEDDING}.*set that false",
    ),
    "no head": (settings(tie_word_embeddings=False), rf"missing: {HEAD}; set tie_word_embeddings=true"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_names_what_is_wrong(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = write_recipe(tmp_path)
    damage, message = DAMAGES[name]
    damage(tmp_path / "model")
    assert cli.main(["check", str(recipe)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "model.path=" in printed
    with pytest.raises(ConfigError, match=message):  # the same words, unbroken by the terminal
        load_config(recipe)


@pytest.mark.parametrize("name", [name for name in DAMAGES if "tokenizer" not in name])
def test_an_export_is_refused_likewise(name: str, tmp_path: Path):
    write_recipe(tmp_path)
    damage, message = DAMAGES[name]
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        export(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


HARMLESS: dict[str, Callable[[Path], None]] = {
    "a copy of the tied head": tensors(lm_head__weight=torch.zeros(100, 128, dtype=torch.bfloat16)),
    "tables of an older checkpoint": tensors(model__layers__0__self_attn__rotary_emb__inv_freq=ones(16)),
    "half precision": tensors(model__norm__weight=ones(128).half()),
    "nothing quantised": settings(quantization_config=None),
    "both spellings of one rotation": settings(
        rope_theta=1e6, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_model_passes(name: str, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    HARMLESS[name](tmp_path / "model")
    load_config(recipe)


def test_files_and_settings_are_told_together(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    put(WEIGHTS, POINTER)(tmp_path / "model")
    put("tokenizer.json", "")(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"(?s)actor\.lr.*Git LFS.*tokenizer\.json' is empty"):
        load_config(recipe, ["actor.lr=-1"])


def test_a_plan_of_a_reshard_needs_no_weights(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    without(WEIGHTS)(tmp_path / "model")
    assert cli.main(["reshard-plan", str(recipe)]) == 0
