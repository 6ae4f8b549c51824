"""How prompts begin and end and where responses stop: `cfpo check` refuses what cannot be, and warns of what is odd."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import TEMPLATE, WORDS, write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer import cli
from trainer.rules import load_config

THINKING = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
LOOSE = "{{ messages[-1].content }}"


def put(recipe: Path, name: str, **changes: Any) -> None:
    """Changes keys of a JSON file of the model."""
    file = recipe.parent / "model" / name
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **changes}))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def warnings(recipe: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a check without mistakes warns of."""
    assert cli.main(["check", str(recipe), *words]) == 0
    return "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))


def test_a_usual_model_is_warned_of_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert warnings(recipe, capsys) == ""


def test_a_bos_that_the_template_leaves_out(recipe: Path, capsys: pytest.CaptureFixture[str]):
    put(recipe, "tokenizer_config.json", bos_token="<unk>", add_bos_token=True)
    assert "prompts begin without <unk>" in warnings(recipe, capsys)
    put(recipe, "tokenizer_config.json", chat_template="{{ bos_token }}" + TEMPLATE)
    assert warnings(recipe, capsys) == ""
    put(recipe, "tokenizer_config.json", chat_template="{{ bos_token }}{{ bos_token }}" + TEMPLATE)
    assert "<unk> twice" in warnings(recipe, capsys)
    put(recipe, "tokenizer_config.json", chat_template=None)
    with pytest.raises(ConfigError, match=r"no chat template.*\{\{ bos_token \}\}\{\{ messages\[-1\]\.content \}\}"):
        load_config(recipe)


def test_a_bos_that_the_tokenizers_own_processor_adds(recipe: Path, capsys: pytest.CaptureFixture[str]):
    bos = {"SpecialToken": {"id": "<unk>", "type_id": 0}}
    adding = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}},
    }
    put(recipe, "tokenizer.json", post_processor=adding)
    put(recipe, "tokenizer_config.json", bos_token="<unk>")
    assert "prompts begin without <unk>" in warnings(recipe, capsys)


def test_where_responses_end(recipe: Path, capsys: pytest.CaptureFixture[str]):
    put(recipe, "config.json", eos_token_id=3)
    assert warnings(recipe, capsys) == ""  # the tokenizer's own counts too
    put(recipe, "tokenizer_config.json", eos_token=None)
    said = warnings(recipe, capsys)
    assert "do not end at <end> (1)" in said and 'rollout.stop=["<end>"]' in said
    assert warnings(recipe, capsys, 'rollout.stop=["<end>"]') == ""
    put(recipe, "config.json", eos_token_id=[100, -1, None])
    said = warnings(recipe, capsys)
    assert "token 100 lies beyond the vocabulary" in said and "no response will end before" in said


def test_a_template_that_ignores_the_header(recipe: Path, capsys: pytest.CaptureFixture[str]):
    put(recipe, "tokenizer_config.json", chat_template=TEMPLATE.partition("{% if add")[0])
    assert "prompts end without assistant:" in warnings(recipe, capsys)
    put(recipe, "tokenizer_config.json", chat_template=LOOSE)
    assert warnings(recipe, capsys) == ""  # nothing says how an answer begins


def test_a_tokenizer_larger_than_the_embedding(recipe: Path):
    put(recipe, "tokenizer.json", added_tokens=[*WORDS["added_tokens"], {"id": 100, "content": "<new>"}])
    with pytest.raises(ConfigError, match=r"ids up to 100, but the embedding has 100 rows.*'<new>' with id 100"):
        load_config(recipe)


def test_arguments_of_the_template(recipe: Path):
    put(recipe, "tokenizer_config.json", chat_template=THINKING)
    key = "data.chat_template_kwargs"
    assert load_config(recipe, [f"{key}.enable_thinking=false"]).data.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(ConfigError, match=rf"{key}\.enable_thought does nothing.*it has: enable_thinking"):
        load_config(recipe, [f"{key}.enable_thought=false"])
    with pytest.raises(ConfigError, match=rf"{key}\.messages cannot be set"):
        load_config(recipe, [f"{key}.messages=1"])
    with pytest.raises(ConfigError, match=rf"{key}\.enable_thinking=.* must be a text"):
        load_config(recipe, [f"{key}.enable_thinking=[1]"])
    with pytest.raises(ConfigError, match=r"rollout\.stop=.* has an empty text"):
        load_config(recipe, ['rollout.stop=[""]'])


def test_templates_that_cannot_be_used(recipe: Path):
    named = [{"name": "tool_use", "template": TEMPLATE}]
    put(recipe, "tokenizer_config.json", chat_template=named)
    with pytest.raises(ConfigError, match="only chat templates for tool_use"):
        load_config(recipe)
    put(recipe, "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": TEMPLATE}])
    load_config(recipe)
    (recipe.parent / "model" / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(ConfigError, match=r"with a system message \(data\.system_prompt\): no system role"):
        load_config(recipe, ["data.system_prompt=x"])
    (recipe.parent / "model" / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(ConfigError, match="no Jinja"):
        load_config(recipe)
    (recipe.parent / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    load_config(recipe)
