"""What an evaluation finds out before it starts anything, and where it writes."""

from pathlib import Path

import pytest
import ray
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer.evaluation.evaluate import default_folder, evaluate
from trainer.evaluation.options import load_evaluation


@pytest.fixture(autouse=True)
def starts_nothing():
    yield
    assert not ray.is_initialized()


def test_a_folder_that_cannot_be_made_is_found_before_the_work(tmp_path: Path):
    write_recipe(tmp_path)
    (tmp_path / "file").write_text("")
    settings = load_evaluation(str(tmp_path / "model"), [str(tmp_path / "train.jsonl")])
    with pytest.raises(ConfigError, match=r"--output .* cannot be made"):
        evaluate(settings, str(tmp_path / "file"))


def test_every_model_has_a_folder_of_its_own():
    assert default_folder("Qwen/Qwen2.5-1.5B") == Path("outputs/eval/Qwen-Qwen2.5-1.5B")
    assert default_folder("outputs/a/export") == Path("outputs/eval/outputs-a-export")
    assert default_folder("outputs/a/export") != default_folder("outputs/b/export")
    assert default_folder(".") == Path("outputs/eval/model")
