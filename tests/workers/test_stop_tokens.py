import json
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ModelError
from workers.rollout.stop_tokens import stop_token_ids


def test_both_files_count(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_token_ids(tmp_path) == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert stop_token_ids(tmp_path) == (5, 7)


def test_a_model_that_never_stops_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    with pytest.raises(ModelError, match="eos_token_id"):
        stop_token_ids(tmp_path)
