"""What every engine is told: how to sample, refusing what no engine can do, and which tokens end a response."""

import json
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ConfigError, ModelError
from workers.rollout.engine import SamplingSettings, generation_config, stop_token_ids


def test_mistakes_are_found_together():
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(max_tokens=0, temperature=0.0, top_p=1.5, top_k=0)
    assert len(caught.value.problems) == 4


def test_defaults_sample_the_full_softmax():
    settings = SamplingSettings(max_tokens=1)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.greedy) == (1.0, 1.0, -1, False)


def test_stop_tokens_of_both_files_count(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_token_ids(tmp_path) == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert stop_token_ids(tmp_path) == (5, 7)


def test_a_model_that_never_stops_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    with pytest.raises(ModelError, match="eos_token_id"):
        stop_token_ids(tmp_path)


def test_an_export_samples_as_training_did(tmp_path: Path):
    advised = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "pad_token_id": 0, "eos_token_id": 5}
    (tmp_path / "generation_config.json").write_text(json.dumps(advised))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert json.loads(generation_config(tmp_path, temperature=1.0, top_p=1.0, top_k=-1)) == {
        "pad_token_id": 0,
        "eos_token_id": [5, 7],
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }
