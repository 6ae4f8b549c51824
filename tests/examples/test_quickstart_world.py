import json
from dataclasses import replace

import pytest
import torch
from example_scripts import load_example
from transformers import AutoModelForCausalLM, AutoTokenizer

make_world = load_example("quickstart/make_world.py")
base_model = load_example("quickstart/base_model.py")
char_tokenizer = load_example("quickstart/char_tokenizer.py")

TINY = make_world.WorldSettings(
    train_problems=20, val_problems=8, probe_problems=4, warm_up=base_model.WarmUp(steps=3, batch_size=4)
)


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer.build_char_tokenizer(512)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "world"
    lines = []
    assert make_world.make_world(out, TINY, lines.append)
    assert "made" in lines[-1]
    return out


def test_the_tokenizer_is_one_token_a_character_and_loses_nothing(tokenizer, tmp_path):
    text = "Add 47+8+5.\n\\boxed{60} , x . ~"
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one(text)["input_ids"]
        assert len(ids) == len(text) and one.decode(ids) == text
        assert len(one("é")["input_ids"]) == 2 and one.decode(one("é")["input_ids"]) == "é"  # a token a byte


def test_the_chat_template(tokenizer):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|system|>S<|user|>U<|assistant|>"
    assert len(tokenizer(rendered)["input_ids"]) == 5  # roles are single tokens
    chat.append({"role": "assistant", "content": "A"})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|system|>S<|user|>U<|assistant|>A<|end|>"


def test_only_the_solutions_tokens_are_learned(tokenizer):
    inputs, targets = base_model.encode_examples(tokenizer, [("U", "AB"), ("UVW", "A")])
    decoded = [tokenizer.decode(row[row != -100]) for row in targets]
    assert decoded == ["AB<|end|>", "A<|end|>"]
    assert tokenizer.decode(inputs[0]) == "<|user|>U<|assistant|>AB<|end|><|pad|>"


def test_a_world_is_complete(world):
    files = {path.name: [json.loads(line) for line in path.open()] for path in world.glob("*.jsonl")}
    assert {name: len(rows) for name, rows in files.items()} == {"train.jsonl": 20, "val.jsonl": 8}
    problems = [row["problem"] for rows in files.values() for row in rows]
    assert len(set(problems)) == 28  # nothing of the validation is trained on
    assert set(files["train.jsonl"][0]) == {"problem", "solution", "level", "type"}
    assert set(json.loads((world / "world.json").read_text())["base_accuracy"]) == {"greedy", "sampled"}


def test_the_base_model_loads_and_fits_two_workers(world):
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    shape = model.config
    assert model.dtype == torch.float32 and shape.tie_word_embeddings and shape.model_type == "qwen2"
    assert 300_000 <= model.num_parameters() <= 3_000_000
    assert shape.vocab_size == len(tokenizer) and shape.eos_token_id == tokenizer.eos_token_id
    assert shape.hidden_size // shape.num_attention_heads >= 32  # the least that vLLM has CPU kernels for
    for size in (shape.num_attention_heads, shape.num_key_value_heads, shape.num_hidden_layers, shape.vocab_size):
        assert size % 2 == 0
    assert tokenizer.decode(tokenizer("a b ,c")["input_ids"]) == "a b ,c"


def test_a_world_is_made_again_only_when_something_changed(world, tmp_path):
    lines = []
    assert not make_world.make_world(world, TINY, lines.append)
    assert lines == [f"the world in {world} is up to date"]
    other = replace(TINY, seed=1)
    assert make_world.world_key(other) != make_world.world_key(TINY)
    assert make_world.made_with(tmp_path) is None
    (tmp_path / "world.json").write_text("{broken")
    assert make_world.made_with(tmp_path) is None


def test_share_of_right_answers():
    problems = [make_world.Problem(47, (8, 5)), make_world.Problem(10, (1, 2))]
    assert make_world.solved_share(problems, ["so \\boxed{60}.", "so 13."]) == 0.5
