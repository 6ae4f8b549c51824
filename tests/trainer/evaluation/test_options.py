"""An evaluation begins with the settings of the model's run; what is said over them wins, and mistakes are told at once."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer.config.paths import recorded
from trainer.config.sources import settings_text
from trainer.evaluation.options import fitting_lengths, load_evaluation
from trainer.rules import load_config
from trainer.run.model_card import export_texts

RUN = (
    "data.system_prompt=Think.",
    "data.max_prompt_length=20",
    "data.max_response_length=30",
    "data.val_limit=3",
    "rollout.stop=[x]",
    "rollout.tensor_parallel_size=2",
    "trainer.num_workers=2",
    "trainer.val_temperature=0.7",
    "trainer.val_samples=2",
    "trainer.seed=9",
    "actor.dtype=float32",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with an exported model (without weights) of 128 positions."""
    config = load_config(
        write_recipe(tmp_path),
        [*RUN, f"data.val_files={tmp_path / 'train.jsonl'}", f"trainer.run_dir={tmp_path / 'run'}"],
    )
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "model", folder / "export")
    (folder / "config.yaml").write_text(settings_text(recorded(config)))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0}) + "\n")
    for name, text in export_texts(config, []).items():
        (folder / "export" / name).write_text(text)
    return folder


def test_what_validation_depends_on_comes_from_the_run(run: Path, tmp_path: Path):
    for model in (run, run / "export"):
        found = load_evaluation(str(model)).config
        data, trainer, rollout = found.data, found.trainer, found.rollout
        assert found.model.path == str(run / "export")
        assert (data.system_prompt, data.max_prompt_length, data.max_response_length) == ("Think.", 20, 30)
        assert (data.val_files, data.val_limit) == ([str(tmp_path / "train.jsonl")], 3)
        assert (trainer.val_temperature, trainer.val_samples, trainer.seed) == (0.7, 2, 9)
        assert (rollout.stop, rollout.tensor_parallel_size, rollout.dtype) == (["x"], 2, "float32")
        assert trainer.world_size == 2  # one replica
        assert data.train_files == []


def test_an_export_keeps_its_settings_wherever_it_goes(run: Path, tmp_path: Path):
    moved = shutil.move(run / "export", tmp_path / "elsewhere")
    found = load_evaluation(str(moved))
    assert found.recipe == Path(moved) / "recipe.yaml"
    assert found.config.data.system_prompt == "Think."


def test_what_is_said_wins(run: Path, tmp_path: Path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+1?", "answer": "It is\\n#### 2"}\n')
    words = [str(other), "data.system_prompt=null", "trainer.val_samples=1", "reward.num_processes=1"]
    found = load_evaluation(str(run), words, {"trainer.val_temperature": 0.0, "trainer.val_samples": 4}).config
    assert (found.data.val_files, found.data.val_limit) == ([str(other)], None)  # the limit is of the run's problems
    assert (found.data.system_prompt, found.trainer.val_temperature, found.trainer.val_samples) == (None, 0.0, 1)
    sets = load_evaluation(str(run), [f"one={other}", f"two={other}"]).config.data
    assert (sets.val_sets, sets.val_files) == ({"one": [str(other)], "two": [str(other)]}, None)


def test_a_model_of_no_run(tmp_path: Path):
    write_recipe(tmp_path)
    found = load_evaluation(str(tmp_path / "model"), [str(tmp_path / "train.jsonl")])
    assert found.recipe is None
    assert (found.config.trainer.val_temperature, found.config.trainer.val_top_p) == (0.6, 0.95)
    assert (found.config.data.max_prompt_length, found.config.data.max_response_length) == (32, 96)  # of 128 positions
    with pytest.raises(ConfigError, match="there are no problems to answer: name a FILE"):
        load_evaluation(str(tmp_path / "model"))


def test_all_mistakes_are_told_at_once(run: Path, tmp_path: Path):
    words = ["gone.jsonl", "actor.lr=1", "data.nothing=1", "trainer.val_top_p=2", "data.max_response_length=400"]
    with pytest.raises(ConfigError) as caught:
        load_evaluation(str(run), words)
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5, said
    for message in (
        "'gone.jsonl' does not exist",
        "actor.lr has no effect on an evaluation; settings that have: data.val_files",
        "unknown key 'data.nothing'",
        "trainer.val_top_p=2.0 must be above 0 and at most 1",
        "but the model has 128 positions",
    ):
        assert message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["math={file}", "{file}"], "has no set, but other files have one"),
        (["reward={file}"], "data.val_sets has the name 'reward'"),
        (["{file}", "reward.name=nowhere.py:score"], "there is no file"),
        (["{file}", "rollout.tensor_parallel_size=3"], "4 attention heads"),
        (["{file}", "trainer.val_temperature=0", "trainer.val_samples=2"], "would all be equal"),
    ],
)
def test_a_mistake_is_found_before_the_work(words: list[str], message: str, run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        load_evaluation(str(run), [word.format(file=tmp_path / "train.jsonl") for word in words])


def test_lengths_fit_the_model_that_is_evaluated():
    assert fitting_lengths(None, None, 32768) == (512, 3072)
    assert fitting_lengths(None, None, 512) == (128, 384)  # the quickstart's model
    assert fitting_lengths(None, 500, 512) == (12, 500)
    assert fitting_lengths(500, None, 512) == (500, 12)
