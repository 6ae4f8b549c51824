"""What every engine is told: how to sample, refusing what no engine can do, and which tokens end a response."""

import json
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ConfigError, ModelError
from workers.rollout.engine import SamplingSettings, Stops, find_stops, generation_config


def test_mistakes_are_found_together():
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(max_tokens=0, temperature=0.0, top_p=1.5, top_k=0)
    assert len(caught.value.problems) == 4


def test_defaults_sample_the_full_softmax():
    settings = SamplingSettings(max_tokens=1)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.greedy) == (1.0, 1.0, -1, False)


def model(folder: Path, **files: dict) -> Path:
    """A folder with these files, ``__`` in their names for a dot."""
    for name, content in {"config__json": {}, **files}.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


TOKENIZER = {
    "eos_token": "<|im_end|>",
    "added_tokens_decoder": {"8": {"content": "<|im_end|>"}, "3": {"content": "<t>"}},
}


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        ({"eos_token_id": 7}, {}, {}, (7,)),
        ({"eos_token_id": 7}, {"eos_token_id": [5, 7]}, {}, (5, 7)),
        ({"eos_token_id": 7}, {}, TOKENIZER, (7, 8)),
        ({}, {}, TOKENIZER, (8,)),
        ({"eos_token_id": None}, {"eos_token_id": None}, TOKENIZER | {"eos_token": {"content": "<t>"}}, (3,)),
        ({"eos_token_id": -1}, {"eos_token_id": [None, 5]}, {"eos_token": None}, (5,)),
        ({"eos_token_id": None}, {}, {"eos_token": "no token"}, ()),
    ],
)
def test_the_stop_tokens_of_all_files_count(tmp_path: Path, config, generation, tokenizer, expected):
    folder = model(tmp_path, config__json=config, generation_config__json=generation, tokenizer_config__json=tokenizer)
    assert find_stops(folder).token_ids == expected


def test_a_stop_beyond_the_vocabulary_is_none(tmp_path: Path):
    folder = model(tmp_path, config__json={"eos_token_id": [7, 90], "vocab_size": 8}, tokenizer_config__json=TOKENIZER)
    assert find_stops(folder) == Stops(token_ids=(7,), beyond=(8, 90))


def test_a_text_that_is_a_token_is_a_stop_token(tmp_path: Path):
    folder = model(tmp_path, config__json={"eos_token_id": 7}, tokenizer_config__json=TOKENIZER)
    stops = find_stops(folder, ["</answer>", "<t>", "</answer>", "<|im_end|> "])
    assert stops == Stops(token_ids=(3, 7, 8), texts=("</answer>", "<|im_end|> "))
    exported = json.loads(generation_config(folder, stops, temperature=1.0, top_p=1.0, top_k=-1))
    assert exported["eos_token_id"] == [3, 7, 8]


@pytest.mark.parametrize("wrong", ["7", 7.0, True, [7, "8"]])
def test_what_is_no_token_id_is_refused(tmp_path: Path, wrong):
    with pytest.raises(ModelError, match=r"config\.json' has eos_token_id=.*it must be a token id"):
        find_stops(model(tmp_path, config__json={"eos_token_id": wrong}))


def test_an_export_samples_as_training_did(tmp_path: Path):
    advised = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "pad_token_id": 0, "eos_token_id": 5}
    (tmp_path / "generation_config.json").write_text(json.dumps(advised))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert json.loads(generation_config(tmp_path, find_stops(tmp_path), temperature=1.0, top_p=1.0, top_k=-1)) == {
        "pad_token_id": 0,
        "eos_token_id": [5, 7],
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }
