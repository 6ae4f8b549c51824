"""The card of an exported model: where it came from, what it gained, and the whole recipe."""

from pathlib import Path

import yaml
from tiny_recipe import write_recipe

from trainer.rules import load_config
from trainer.run.model_card import export_texts

METRICS = [
    {"step": 0, "val/accuracy": 0.431, "time/step": 1.0},
    {"step": 1, "reward/mean": 0.25},
    {"step": 2, "reward/mean": 0.5, "val/accuracy": 0.9, "val/truncated_share": None, "val/math/pass@4": 0.75},
    {"step": 2, "val/math/source/aime/accuracy": 0.1, "val/accuracy_stderr": 0.01, "val/reward/timeouts": 0.0},
]


def test_card_template_and_front_matter(tmp_path: Path):
    template = tmp_path / "mine.jinja"
    template.write_text("Q: {{ messages[-1].content }}")
    words = [f"data.chat_template={template}", "data.system_prompt=Box it. ```", "policy_loss.name=clip"]
    config = load_config(write_recipe(tmp_path), words)
    texts = export_texts(config, METRICS)
    assert texts["chat_template.jinja"] == "Q: {{ messages[-1].content }}"
    card = texts["README.md"]
    assert "| `val/accuracy` | 0.431 (step 0) | 0.9 (step 2) |" in card
    assert "| `reward/mean` | 0.25 (step 1) | 0.5 (step 2) |" in card
    assert "| `val/math/pass@4` | 0.75 (step 2) | 0.75 (step 2) |" in card
    assert not any(name in card for name in ("truncated_share", "time/step", "aime", "stderr", "timeouts"))
    assert "2 rollout steps, policy loss `clip`" in card and f"the model in `{tmp_path / 'model'}`" in card
    assert "````\nBox it. ```\n````" in card  # a fence that the prompt cannot end
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front  # a folder of this machine is no id


def test_a_model_of_the_hub_is_named_and_the_recipe_is_whole(tmp_path: Path):
    config = load_config(write_recipe(tmp_path))
    from dataclasses import replace

    config = replace(config, model=replace(config.model, path="Qwen/Qwen2.5-0.5B", revision="abc"))
    texts = export_texts(config, [])
    assert texts.keys() == {"README.md", "recipe.yaml"}  # the tokenizer's own template stays
    card = texts["README.md"]
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert "at revision `abc`" in card and "None were measured" in card and "no system message" in card
    recipe = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert recipe["policy_loss"]["epsilon"] == 0.1 and recipe["trainer"]["total_steps"] == 5


def test_what_ended_responses_and_what_the_template_was_told(tmp_path: Path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ mood }} {{ messages[-1].content }}")
    words = [f"data.chat_template={template}", "data.chat_template_kwargs.mood=calm", 'rollout.stop=["</answer>"]']
    card = export_texts(load_config(write_recipe(tmp_path), words), [])["README.md"]
    assert "The template was told:\n\n```yaml\nmood: calm\n```" in card
    assert 'ended a response:\n\n```\n"</answer>"\n```' in card
