"""Settings that are texts are what was written, wherever they were written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import Config, resolved
from trainer.config.sources import read_recipe, settings_of, settings_text
from trainer.rules import merge_config, read_config

WORDS = (
    *("0123456", "12e8", "1e3", "1_000", "0x10", "0o17", "1:30", "1.50", ".5", "-3", "+7", ".inf", ".nan", "5"),
    *("no", "yes", "on", "off", "true", "False", "none", "None", "2026-11-27", "2026-11-27 10:00:00", "main", "a=b"),
    *("runs/[a]", "~a/runs", "=", "<<", "a,b", "v1.0", "é", "\u4e2d"),
)
"""Words that are plain YAML scalars; YAML makes something else than a text of most."""

SHELL_WORDS = (
    " spaces ",
    "a: b",
    "a #c",
    "[a]",
    "{}",
    "{a: 1}",
    "*.jsonl",
    "@x",
    "%x",
    "!x",
    "- a",
    "&a",
    "`x`",
    "{",
    "a]",
)
"""Words that are lists, mappings or no YAML at all, where a text is one."""


def recipe_of(folder: Path, text: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"model: {{path: p}}\ndata: {{train_files: a.jsonl}}\n{text}")
    return path


def config_of(path: Path, *words: str) -> Config:
    return read_config(path, words).checked()


@pytest.mark.parametrize("word", [*WORDS, *SHELL_WORDS])
def test_on_the_command_line(tmp_path: Path, word: str):
    config = config_of(recipe_of(tmp_path), *(f"{key}={word}" for key in ("model.revision", "trainer.project")))
    assert (config.model.revision, config.trainer.project) == (word, word)


@pytest.mark.parametrize("word", WORDS)
def test_in_a_recipe_and_in_lists(tmp_path: Path, word: str):
    word_in_list = word if not set(word) & set("[],{}") else f"'{word}'"
    path = recipe_of(tmp_path, f"trainer: {{}}\ntrainer.run_dir: {word}\nmodel.revision: {word}\n")
    config = config_of(path, f"data.train_files={word}", f"data.val_files=[b, {word_in_list}]")
    assert (config.trainer.run_dir, config.model.revision) == (word, word)
    assert (config.data.train_files, config.data.val_files) == ([word], ["b", word])


def test_null_clears_an_optional_text_and_is_a_word_elsewhere(tmp_path: Path):
    path = recipe_of(tmp_path, "model.revision: main\ndata.system_prompt: hi\n")
    for null in ("null", "~", "", "Null"):
        assert config_of(path, f"model.revision={null}", f"data.system_prompt={null}").model.revision is None
    assert config_of(path, "model.revision='null'").model.revision == "null"
    assert config_of(path, "trainer.project=null").trainer.project == "null"
    (problem,) = read_config(path, ["trainer.run_dir="]).problems  # as from a variable of the shell that is not set
    assert problem.message.startswith("trainer.run_dir=None is not a text")


def test_quotes_are_not_part_of_a_text(tmp_path: Path):
    config = config_of(recipe_of(tmp_path), "trainer.project='1e3'", 'model.revision="[a]"')
    assert (config.trainer.project, config.model.revision) == ("1e3", "[a]")


def test_a_number_may_stand_in_quotes_and_a_name_need_none(tmp_path: Path):
    path = recipe_of(tmp_path, "trainer: {total_steps: '5'}\nalgorithm: {rollout_correction: {mode: off}}\n")
    config = config_of(path, "actor.lr='1e-5'")
    assert (config.trainer.total_steps, config.actor.lr) == (5, 1e-5)
    assert config.algorithm.rollout_correction.mode == "off"


def test_interpolations_resolve_and_can_be_written_as_texts(tmp_path: Path):
    path = recipe_of(tmp_path, "trainer: {project: math, run_dir: 'outputs/${trainer.project}'}\n")
    config = config_of(path, "data.system_prompt=\\${x}", "data.val_files=['${trainer.project}.jsonl']")
    assert config.trainer.run_dir == "outputs/math"
    assert config.data.system_prompt == "${x}"
    assert config.data.val_files == ["math.jsonl"]
    for words in (["data.system_prompt=${"], ["data.val_files=['${nowhere}']"], ["data.val_files=['???']"]):
        (problem,) = read_config(path, words).problems
        assert problem.keys == (words[0].partition("=")[0],)


def test_yaml_of_one_mapping_in_another(tmp_path: Path):
    path = recipe_of(tmp_path, "base: &base {project: 1e3}\n".replace("base:", "trainer:"))
    assert config_of(path).trainer.project == "1e3"
    path.write_text(
        "model: &m {path: p, revision: 1e3}\ndata: {train_files: a}\nactor: {<<: {lr: 1e-5}, dtype: auto}\n"
    )
    config = config_of(path)
    assert (config.model.revision, config.actor.lr) == ("1e3", 1e-5)


PLUGIN = """
from dataclasses import dataclass
from cfpo_hybrid import register_policy_loss
from cfpo_hybrid.algorithms.advantage import register_advantage
@dataclass(frozen=True)
class Knobs:
    mode: str = "a"
    tag: str | None = None
    scale: float = 1.0
@register_policy_loss("LOSS", config=Knobs)
def loss(inputs, config):
    return -inputs.ratio * inputs.advantages
@register_advantage("ADVANTAGE", config=Knobs)
def advantage(groups, config):
    return groups.centred
"""


@pytest.mark.parametrize("word", ["1e3", "no", "0123", "null"])
def test_knobs_that_are_texts(tmp_path: Path, word: str):
    plugin = tmp_path / "texts_plugin.py"
    loss, advantage = f"texts_test_loss_{word}", f"texts_test_advantage_{word}"
    plugin.write_text(PLUGIN.replace("LOSS", loss).replace("ADVANTAGE", advantage))
    words = [f"policy_loss.plugins={plugin}", f"policy_loss.name={loss}", "policy_loss.scale=2"]
    words += [f"policy_loss.mode={word}", f"algorithm.advantage={advantage}"]
    words += [f"algorithm.advantage_knobs={{mode: {word}, tag: ~, scale: 3}}"]
    config = config_of(recipe_of(tmp_path), *words)
    assert config.policy_loss.knobs == {"mode": word, "tag": None, "scale": 2.0}
    assert config.algorithm.advantage_knobs == {"mode": word, "tag": None, "scale": 3}
    saved = tmp_path / "config.yaml"
    saved.write_text(settings_text(resolved(config)))
    assert config_of(saved) == config


TEXT = st.text(max_size=12) | st.sampled_from(
    [*WORDS, *SHELL_WORDS, "null", "~", "", "${x}", "\\${", "\\\\${a}\\", "a\n b"]
)

FILE = TEXT.filter(lambda text: not text.startswith("~"))  # which is the home folder in a path


@settings(deadline=None, max_examples=20)
@given(project=TEXT, prompt=TEXT | st.none(), files=st.lists(FILE, min_size=1, max_size=3))
def test_a_saved_config_is_read_as_it_was(tmp_path_factory: Any, project: str, prompt: str | None, files: list[str]):
    folder = tmp_path_factory.mktemp("saved")
    tree = resolved(config_of(recipe_of(folder)))
    if "???" in (project, prompt, *files):
        return
    tree["trainer"]["project"], tree["data"]["system_prompt"], tree["data"]["train_files"] = project, prompt, files
    text = settings_text(tree)
    assert settings_of(text) == json.loads(json.dumps(tree))
    saved = folder / "config.yaml"
    saved.write_text(text, encoding="utf-8", newline="")
    config = merge_config([read_recipe(saved)]).checked()
    assert (config.trainer.project, config.data.system_prompt) == (project, prompt)
    assert config.data.train_files == files


def test_plain_yaml_says_the_same_of_a_saved_config(tmp_path: Path):
    config = config_of(recipe_of(tmp_path), "trainer.project=1e3", "model.revision=2026-11-27")
    assert yaml.safe_load(settings_text(resolved(config))) == json.loads(json.dumps(resolved(config)))
