"""`cfpo export`: through a layout and back without a changed bit, and what is refused before anything starts."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import save_tiny_model

from cfpo_hybrid.errors import ConfigError, ModelError
from trainer import cli
from trainer import export as exports
from trainer.commands.export import verdict
from trainer.export import export, push

TP = "actor.megatron.tensor_parallel_size"
PP = "actor.megatron.pipeline_parallel_size"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in bf16."""
    folder = tmp_path_factory.mktemp("export") / "model"
    save_tiny_model(folder, num_hidden_layers=3)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_the_files_are_those_of_the_source_whatever_the_layout(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    stages = [f"{PP}=2", "actor.megatron.first_stage_layers=1", "actor.megatron.last_stage_layers=2"]
    assert cli.main(["export", str(source), str(out), *stages, "--check"]) == 0
    printed = capsys.readouterr().out
    assert "in bfloat16" in printed
    assert "(tp=1, pp=2, ep=1)" in printed
    assert "check passed: every tensor equals" in printed
    expected, found = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_failed_check_names_the_first_tensors():
    lines = verdict(Path("m"), [f"tensor {number}: 1 of 2 numbers differ" for number in range(22)]).splitlines()
    assert lines[0] == "check FAILED: 22 tensors unlike those of m:"
    assert lines[20:] == ["  tensor 19: 1 of 2 numbers differ", "  ... and 2 more"]
    assert verdict(Path("m"), []) == "check passed: every tensor equals that of m bit for bit"


def test_mistakes_are_refused_before_anything_starts(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"did you mean actor\.megatron\.tensor_parallel_size"):
        export(str(source), out, ["tensor_parallel_size=2"])
    with pytest.raises(ConfigError, match=r"unknown key 'trainer\.num_workers'"):
        export(str(source), out, ["trainer.num_workers=2"])
    with pytest.raises(ConfigError, match=TP):
        export(str(source), out, [f"{TP}=3"])
    with pytest.raises(ConfigError, match="3 layers cannot be cut into 2 pipeline stages"):
        export(str(source), out, [f"{PP}=2"])
    with pytest.raises(ConfigError, match=r"actor\.dtype='bf16' is unknown"):
        export(str(source), out, ["actor.dtype=bf16"])
    with pytest.raises(ConfigError, match=f"{TP}=0 must be at least 1"):
        export(str(source), out, [f"{TP}=0"])
    with pytest.raises(ModelError, match="is a file"):
        export(str(source), source / "config.json")
    with pytest.raises(ModelError, match="neither a model folder nor a checkpoint"):
        export(str(tmp_path), out)
    out.mkdir()
    (out / "old").write_text("")
    with pytest.raises(ModelError, match="not empty"):
        export(str(source), out)


class Hub:
    """Stands for the Hub's client; keeps what it is asked for."""

    refuses = False

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def create_repo(self, repository: str, **options: object) -> str:
        if self.refuses:
            raise OSError("no route to the Hub")
        self.asked.append({"repo": repository, **options})
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, **options: object) -> None:
        self.asked.append(options)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    client = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_of_a_test")
    return client


def test_a_folder_is_pushed_whole_and_private(hub: Hub, tmp_path: Path):
    assert push(tmp_path, "me/model") == "https://huggingface.co/me/model"
    made, uploaded = hub.asked
    assert made == {"repo": "me/model", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", tmp_path)
    push(tmp_path, "me/model", public=True)
    assert hub.asked[2]["private"] is False
    hub.refuses = True
    with pytest.raises(ModelError, match=r"is written, but could not be pushed .*no route.*hf upload me/model"):
        push(tmp_path, "me/model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push", "a/b/c"], "OWNER/NAME"),
        (["--push", "me/model"], "hf auth login"),
        (["--public"], "name one with --push"),
    ],
)
def test_what_cannot_be_pushed_is_found_before_anything_is_written(
    words: list[str], message: str, source: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert cli.main(["export", str(source), str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.asked


def test_only_what_passed_its_check_is_pushed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    found: list[tuple[str, ...]] = [("a tensor",), ()]

    def exported(source: str, output: Path, *_: object, check: bool) -> exports.ExportReport:
        differences = found.pop(0) if check else None
        layout = exports.ParallelLayout()
        return exports.ExportReport(
            source=tmp_path, num_tensors=1, dtype="float32", layout=layout, differences=differences
        )

    monkeypatch.setattr(exports, "export", exported)
    words = ["export", "model", str(tmp_path), "--check", "--push", "me/model"]
    assert cli.main(words) == 1 and not hub.asked
    assert cli.main(words) == 0 and len(hub.asked) == 2
    assert "pushed to https://huggingface.co/me/model" in capsys.readouterr().out
