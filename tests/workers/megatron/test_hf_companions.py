"""What stands beside exported weights: all files of the tokenizer, in words that transformers 4.56 and 5 both read."""

import json
from pathlib import Path

import pytest
import torch
from data_world import char_tokenizer
from tiny_model import LLAMA_31, save_tiny_model

from cfpo_hybrid.models import load_hf_config, model_shape
from workers.megatron.hf_companions import write_companions


def companions_of(source: Path, **texts: str) -> Path:
    """Of an export beside the source."""
    out = source.with_name("out")
    out.mkdir()
    shape = model_shape(load_hf_config(str(source)))
    write_companions(
        source, out, shape, torch.bfloat16, {name.replace("__", "."): text for name, text in texts.items()}
    )
    return out


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As transformers 5 writes it."""
    folder = tmp_path / "source"
    save_tiny_model(folder, "llama", rope_scaling=LLAMA_31 | {"rope_theta": 5e5})
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.chat_template = "base {{ messages[-1].content }}"
    tokenizer.save_pretrained(folder)
    return folder


def test_config_speaks_to_both_versions(source: Path):
    new = read(source / "config.json")
    assert "rope_theta" not in new and "torch_dtype" not in new  # or this test shows nothing
    config = read(companions_of(source) / "config.json")
    # What version 4.56 looks for; without it the model rotates by another theta, and unscaled.
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == LLAMA_31
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] is False
    assert config["rope_parameters"] == new["rope_parameters"]


def test_the_written_config_has_the_shape_of_the_source(source: Path):
    out = companions_of(source)
    assert model_shape(load_hf_config(str(out))) == model_shape(load_hf_config(str(source)))


def test_tokenizer_speaks_to_both_versions(source: Path):
    from transformers import AutoTokenizer

    new = read(source / "tokenizer_config.json")
    assert new["extra_special_tokens"] == ["<x>"] and new["tokenizer_class"] == "TokenizersBackend"
    out = companions_of(source)
    config = read(out / "tokenizer_config.json")
    # Version 4.56 wants a mapping under extra_special_tokens, and has no TokenizersBackend.
    assert config["additional_special_tokens"] == ["<x>"] and "extra_special_tokens" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert after("12<x>+").input_ids == before("12<x>+").input_ids
    assert after.all_special_tokens == before.all_special_tokens
    assert after.chat_template == before.chat_template


def test_named_special_tokens_of_version_4_stay(source: Path):
    config = read(source / "tokenizer_config.json") | {"extra_special_tokens": {"image_token": "<x>"}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    assert read(companions_of(source) / "tokenizer_config.json")["extra_special_tokens"] == {"image_token": "<x>"}


def test_the_template_of_training_replaces_every_other(source: Path):
    from transformers import AutoTokenizer

    config = read(source / "tokenizer_config.json") | {"chat_template": "older"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    out = companions_of(source, chat_template__jinja="trained {{ messages[-1].content }}")
    chat = [{"role": "user", "content": "1+1"}]
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(chat, tokenize=False) == "trained 1+1"
    assert read(out / "tokenizer_config.json")["chat_template"].startswith("trained")
    assert not (out / "additional_chat_templates").exists()


def test_files_that_belong_to_other_weights_stay_behind(source: Path):
    taken = [
        "merges.txt",
        "spiece.model",
        "qwen.tiktoken",
        "tokenization_mine.py",
        "LICENSE",
        "special_tokens_map.json",
    ]
    left = ["pytorch_model.bin.index.json", "model.safetensors.index.json", "adapter_config.json", "modeling_mine.py"]
    left += ["trainer_state.json", "quantize_config.json"]
    for name in [*taken, *left]:
        (source / name).write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    out = companions_of(source, README__md="card")
    names = {file.name for file in out.iterdir()}
    assert {*taken, "chat_template.jinja", "tokenizer.json", "additional_chat_templates"} <= names
    assert not names & set(left)
    assert (out / "README.md").read_text() == "card"
