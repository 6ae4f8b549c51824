"""What an evaluation finds out before it starts anything, and where it writes."""

from pathlib import Path

import pytest
import ray
from data_world import char_tokenizer
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError, RewardError
from trainer.evaluation.evaluate import default_folder, evaluate
from trainer.evaluation.options import EvaluationOptions


@pytest.fixture
def world(tmp_path: Path) -> dict:
    """A model of 4 heads and 128 positions without weights, and a file of problems."""
    write_recipe(tmp_path)
    char_tokenizer().save_pretrained(tmp_path / "model")
    return {"model": str(tmp_path / "model"), "files": (str(tmp_path / "train.jsonl"),)}


@pytest.fixture(autouse=True)
def starts_nothing():
    yield
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_response_length": 3072}, "exceed the 128 positions"),
        ({"num_workers": 3, "tensor_parallel_size": 3}, r"--tensor-parallel-size 3: .*4 attention heads"),
    ],
)
def test_what_the_model_cannot_do_is_refused(wrong: dict, message: str, world: dict):
    with pytest.raises(ConfigError, match=message):
        evaluate(EvaluationOptions(**world, **wrong))


def test_a_reward_that_is_not_there_is_found_before_the_work(world: dict):
    with pytest.raises(RewardError, match="there is no file"):
        evaluate(EvaluationOptions(**world, reward="nowhere.py:score"))


def test_a_folder_that_cannot_be_made_is_found_before_the_work(world: dict, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .* cannot be made"):
        evaluate(EvaluationOptions(**world, output=str(tmp_path / "file")))


def test_every_model_has_a_folder_of_its_own():
    assert default_folder("Qwen/Qwen2.5-1.5B") == Path("outputs/eval/Qwen-Qwen2.5-1.5B")
    assert default_folder("outputs/a/export") == Path("outputs/eval/outputs-a-export")
    assert default_folder("outputs/a/export") != default_folder("outputs/b/export")
    assert default_folder(".") == Path("outputs/eval/model")
