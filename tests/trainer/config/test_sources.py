from pathlib import Path

import pytest

from cfpo_hybrid.errors import ConfigError
from trainer.config.sources import read_overrides, read_recipe


def test_lines_of_nested_keys(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("# a comment\nactor:\n  lr: 1e-6\n\n  megatron:\n    offload: true\n")
    source = read_recipe(recipe)
    assert source.tree == {"actor": {"lr": 1e-6, "megatron": {"offload": True}}}
    assert source.origin("actor.lr") == "r.yaml line 3"
    assert source.origin("actor.megatron.offload") == "r.yaml line 6"
    assert source.origin("trainer.seed") == "r.yaml"


def test_an_empty_recipe_sets_nothing(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("# nothing yet\n")
    assert read_recipe(recipe).tree == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,", "not valid YAML"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("just words", "no mapping"),
        ("- 1\n- 2\n", "no mapping"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe)


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path):
    (tmp_path / "7b.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"there is no recipe '.*8b.yaml'; recipes in that folder: .*7b.yaml"):
        read_recipe(tmp_path / "8b.yaml")


def test_override_values_are_yaml():
    words = ["a.b=1e-6", "c=[x, y]", "d={e: 1}", "f=null", "g=a=b", "h=true"]
    sources, problems = read_overrides(words)
    assert problems == []
    values = [next(iter(source.tree.values())) for source in sources]
    assert values == [1e-6, ["x", "y"], {"e": 1}, None, "a=b", True]


def test_words_that_are_no_override():
    sources, problems = read_overrides(["trainer.seed", "=3", "a=[1", "b=2"])
    assert [source.tree for source in sources] == [{"a": "[1"}, {"b": 2}]  # no YAML: a text
    assert len(problems) == 2
    assert "write key=value" in problems[0]
