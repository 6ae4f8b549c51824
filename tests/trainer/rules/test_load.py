from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer.config import changed_settings, resolved
from trainer.rules import load_and_inspect, load_config, read_config


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_recipe_then_overrides(recipe: Path):
    config = load_config(recipe, ["actor.lr=1e-5", "trainer.total_steps=3", "trainer.total_steps=7"])
    assert config.actor.lr == 1e-5  # a number, though YAML 1.1 reads 1e-5 as a text
    assert config.trainer.total_steps == 7  # the last word wins
    assert config.rollout.group_size == 4
    assert config.policy_loss.knobs == {"epsilon": 0.1}


def test_derived_numbers(recipe: Path):
    config = load_config(recipe, ["trainer.num_workers=4", "actor.megatron.tensor_parallel_size=2"])
    assert config.responses_per_step == 64  # 16 prompts x 4
    assert config.algorithm.updates_per_step == 8  # 2 iterations x 4 mini-batches
    assert config.total_updates == 40  # 5 steps
    assert (config.train_layout.dp, config.train_layout.tp) == (2, 2)
    assert (config.rollout_layout.dp, config.rollout_layout.tp) == (4, 1)


def test_workers_by_nodes(recipe: Path):
    config = load_config(recipe, ["trainer.num_workers=null", "trainer.nodes=2", "trainer.workers_per_node=4"])
    assert config.trainer.world_size == 8
    assert config.trainer.workers_on_a_node == 4


def test_nothing_changes_a_config(recipe: Path):
    config = load_config(recipe)
    with pytest.raises(FrozenInstanceError):
        config.trainer.total_steps = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.actor.megatron.tensor_parallel_size = 2  # type: ignore[misc]


def test_the_saved_config_is_a_recipe_of_the_same_run(recipe: Path, tmp_path: Path):
    config = load_config(recipe, ["policy_loss.name=clip", "policy_loss.clip_high=0.3"])
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(resolved(config)))
    assert load_config(saved) == config
    assert resolved(config)["policy_loss"] == {"name": "clip", "plugins": [], "clip_low": 0.2, "clip_high": 0.3}


def test_validation_sets_come_from_the_recipe_and_the_command_line(recipe: Path, tmp_path: Path):
    file = str(tmp_path / "train.jsonl")
    recipe.write_text(
        recipe.read_text().replace("data:\n", f"data:\n  val_sets:\n    math: {file}\n    both: [{file}, {file}]\n")
    )
    config = load_config(recipe, [f"data.val_sets.sums=[{file}]", "data.val_sets.math=[]"])
    assert config.data.validation_sets == {"both": [file, file], "sums": [file]}
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(resolved(config)))
    assert load_config(saved) == config
    changed = changed_settings(resolved(load_config(recipe)), resolved(config))
    assert changed == {"data.val_sets.math": ([file], []), "data.val_sets.sums": (None, [file])}
    cleared = load_config(recipe, ["data.val_sets={}", f"data.val_files={file}"])
    assert cleared.data.validation_sets == {"": [file]}


def test_a_mistake_in_a_validation_set_has_its_line(recipe: Path):
    recipe.write_text(
        recipe.read_text().replace("data:\n", "data:\n  val_sets:\n    a: nowhere.jsonl\n    b: {c: d}\n")
    )
    lines = recipe.read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    missing, wrong = (next(one for one in caught.value.problems if f"val_sets.{name}" in one) for name in "ab")
    assert missing.endswith(f"[recipe.yaml line {lines.index('    a: nowhere.jsonl') + 1}]")
    assert wrong.endswith(f"[recipe.yaml line {lines.index('    b: {c: d}') + 1}]")


def test_naming_another_loss_drops_the_knobs_of_the_one_before(recipe: Path):
    assert load_config(recipe, ["policy_loss.name=clip"]).policy_loss.knobs == {"clip_low": 0.2, "clip_high": 0.2}
    assert load_config(recipe, ["policy_loss.name=cfpo"]).policy_loss.knobs == {"epsilon": 0.1}  # the recipe's own


def test_knobs_beside_the_name_of_another_loss_are_mistakes(recipe: Path):
    with pytest.raises(ConfigError, match=r"policy_loss.epsilon=0.3: 'clip' has no such knob.*command line"):
        load_config(recipe, ["policy_loss.epsilon=0.3", "policy_loss.name=clip"])
    recipe.write_text(recipe.read_text().replace("name: cfpo", "name: clip"))
    with pytest.raises(ConfigError, match=r"policy_loss.epsilon=0.1: 'clip' has no such knob.*recipe.yaml line"):
        load_config(recipe)


def test_an_unknown_loss_names_the_nearest(recipe: Path):
    with pytest.raises(ConfigError, match=r"unknown policy loss 'cfop'.*did you mean 'cfpo'"):
        load_config(recipe, ["policy_loss.name=cfop"])


def test_a_plugin_is_loaded_before_its_loss_is_built(recipe: Path, tmp_path: Path):
    plugin = tmp_path / "tilted.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from cfpo_hybrid import register_policy_loss\n"
        "@dataclass(frozen=True)\n"
        "class TiltedConfig:\n"
        "    slope: float = 2.0\n"
        "@register_policy_loss('tilted_for_config_test', config=TiltedConfig)\n"
        "def tilted(inputs, config):\n"
        "    return -inputs.ratio * inputs.advantages * config.slope\n"
    )
    words = [f"policy_loss.plugins={plugin}", "policy_loss.name=tilted_for_config_test", "policy_loss.slope=3"]
    config = load_config(recipe, words)
    assert config.policy_loss.knobs == {"slope": 3.0}
    assert config.policy_loss.plugins == [str(plugin)]


def test_a_missing_plugin_is_one_mistake(recipe: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["policy_loss.plugins=[nowhere.py]", "policy_loss.name=theirs"])
    assert len(caught.value.problems) == 1
    assert "nowhere.py" in str(caught.value)


def test_all_mistakes_come_together_with_their_places(recipe: Path):
    recipe.write_text(recipe.read_text().replace("group_size: 4", "group_sise: 4"))
    words = ["actor.lr=fast", "rollout.top_p=0.9", "algorithm.advantage=grop", "trainer.num_workers=3"]
    words += ["actor.megatron.tensor_parallel_size=2", "policy_loss.eps=0.3", "nonsense", "model.path=/no/such/model"]
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, words)
    text = str(caught.value)
    assert "unknown key 'rollout.group_sise'; did you mean rollout.group_size? [recipe.yaml line 10]" in text
    assert "actor.lr='fast' is not a number [command line]" in text
    assert "rollout.top_p=0.9 truncates sampling" in text
    assert "algorithm.advantage='grop' is unknown" in text
    assert "3 workers cannot be divided into model replicas" in text
    assert "'cfpo' has no such knob" in text
    assert "'nonsense' is no override" in text
    assert "/no/such/model" in text
    assert len(caught.value.problems) == 8


def test_a_mistake_is_said_once(recipe: Path):
    """A batch size that cannot be read is no reason to complain about what it would divide by."""
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["data.train_batch_size=many", "algorithm.batch_ratio=7"])
    assert len(caught.value.problems) == 1


def test_keys_without_a_default_must_be_set(recipe: Path):
    recipe.write_text("rollout:\n  group_size: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    assert [problem.split(" is not set")[0] for problem in caught.value.problems] == ["data.train_files", "model.path"]


def test_reading_leaves_rules_and_files_alone(recipe: Path):
    config = read_config(recipe, ["data.train_files=nowhere.jsonl", "rollout.top_p=0.5"]).checked()
    assert config.data.train_files == ["nowhere.jsonl"]  # one name is a list of one
    assert config.rollout.top_p == 0.5


def test_the_model_comes_with_its_source(recipe: Path):
    loaded = load_and_inspect(recipe)
    assert loaded.model.source == "config.json"
    assert loaded.model.shape.num_layers == 4
