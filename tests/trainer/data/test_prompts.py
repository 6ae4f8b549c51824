import logging
from dataclasses import replace

import pytest
import torch
from data_world import char_tokenizer, numbered_rows, run_config, text_of, write_rows
from transformers import PreTrainedTokenizerFast

from cfpo_hybrid.errors import DataError, ModelError
from trainer.config import DataConfig
from trainer.data import TrainPrompts, load_validation
from workers.config import ModelConfig
from workers.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture
def data(tmp_path):
    return DataConfig(
        train_files=[write_rows(tmp_path / "train.jsonl", numbered_rows(12))],
        train_batch_size=4,
        max_prompt_length=20,
    )


def prompt_texts(tokenizer, batch):
    return [
        text_of(tokenizer, ids[:length])
        for ids, length in zip(batch["prompts"].tolist(), batch["prompt_lengths"].tolist(), strict=True)
    ]


def test_a_training_batch(tokenizer, data):
    batch = TrainPrompts(run_config(data, group_size=3), tokenizer).draw(0, 4, step=0)
    assert len(batch) == 12
    assert batch["group_ids"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch["sample_ids"].tolist() == [0, 1, 2] * 4
    assert len(set(batch["seeds"].tolist())) == 12 and int(batch["seeds"].min()) >= 0
    assert prompt_texts(tokenizer, batch) == [f"u:{problem};a:" for problem in batch["problem"]]
    for problem, truth, extra in zip(batch["problem"], batch["ground_truth"], batch["extra"], strict=True):
        number = int(problem[1:])
        assert truth == f"So \\boxed{{{number}}}."
        assert extra == {"level": f"Level {number % 5 + 1}", "type": "Algebra"}


def test_prompts_are_padded_on_the_right_with_zeros_to_the_widest(tokenizer, data):
    whole = replace(data, train_batch_size=12)
    batch = TrainPrompts(run_config(whole, group_size=1), tokenizer).draw(0, 12, step=0)
    assert batch["prompts"].shape == (12, len("u:p10;a:"))  # p10 and p11 are the widest
    padding = torch.arange(8) >= batch["prompt_lengths"][:, None]
    assert (batch["prompts"][padding] == 0).all() and (batch["prompts"][~padding] != 0).all()


def test_a_restart_continues_with_the_same_prompts_and_seeds(tokenizer, data):
    config = run_config(data)
    walked = TrainPrompts(config, tokenizer)
    before = [walked.draw(4 * step, 4, step=step) for step in range(5)][4]
    after = TrainPrompts(config, tokenizer).draw(16, 4, step=4)
    for name in before.column_names:
        assert (
            list(before[name]) == list(after[name]) if before[name].ndim == 1 else (before[name] == after[name]).all()
        )


def test_every_prompt_comes_once_an_epoch_in_an_order_of_the_seed(tokenizer, data):
    def epoch(seed, first_step, shuffle=True):
        prompts = TrainPrompts(run_config(replace(data, shuffle=shuffle), group_size=1, seed=seed), tokenizer)
        return [
            problem
            for step in range(first_step, first_step + 3)
            for problem in prompts.draw(4 * step, 4, step=step)["problem"]
        ]

    first = epoch(1, 0)
    assert sorted(first) == sorted(f"p{n}" for n in range(12))
    assert sorted(epoch(1, 3)) == sorted(first) and epoch(1, 3) != first and epoch(2, 0) != first
    assert epoch(1, 0, shuffle=False) == epoch(1, 3, shuffle=False) == [f"p{n}" for n in range(12)]


def test_seeds_differ_from_step_to_step(tokenizer, data):
    prompts = TrainPrompts(run_config(data), tokenizer)
    seeds = torch.cat([prompts.draw(4 * step, 4, step=step)["seeds"] for step in range(6)])
    assert len(seeds.unique()) == len(seeds)


def test_a_step_that_draws_twice_gets_other_groups_and_seeds(tokenizer, data):
    prompts = TrainPrompts(run_config(data), tokenizer)
    first, more = prompts.draw(0, 4, step=0), prompts.draw(4, 2, step=0, first_group=4)
    assert more["group_ids"].tolist() == [4, 4, 5, 5]
    assert len(torch.cat([first["seeds"], more["seeds"]]).unique()) == 12
    assert list(more["problem"][::2]) == list(prompts.draw(0, 6, step=0)["problem"][8::2])


def test_a_curriculum_needs_prompts_enough_of_the_easiest_level(tokenizer, data):
    widen = replace(data, curriculum="widen", curriculum_steps=5, train_batch_size=3)
    batch = TrainPrompts(run_config(widen), tokenizer).draw(0, 3, step=0)
    assert {extra["level"] for extra in batch["extra"]} == {"Level 1"}
    # 12 rows of 5 levels: three are of level 1
    with pytest.raises(DataError, match=r"begins with the 3 prompts of the easiest level, fewer than one batch"):
        TrainPrompts(run_config(replace(widen, train_batch_size=4)), tokenizer)


def test_the_system_prompt_and_the_chat_template(tokenizer, data, tmp_path):
    data = replace(data, system_prompt="Be brief", max_prompt_length=40, shuffle=False)
    batch = TrainPrompts(run_config(data), tokenizer).draw(0, 4, step=0)
    assert prompt_texts(tokenizer, batch)[0] == "s:Be brief;u:p0;a:"
    (tmp_path / "own.jinja").write_text("Q {{ messages[-1].content }} A ")
    own = replace(data, chat_template=str(tmp_path / "own.jinja"))
    batch = TrainPrompts(run_config(own), char_tokenizer(template=None)).draw(0, 4, step=0)
    assert prompt_texts(tokenizer, batch)[0] == "Q p0 A "


def test_templates_that_do_not_work(data, tmp_path):
    with pytest.raises(DataError, match=r"has no chat template; name a Jinja file in data\.chat_template"):
        TrainPrompts(run_config(data), char_tokenizer(template=None))
    refusing = char_tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"with a system message \(data\.system_prompt\): no system role"):
        TrainPrompts(run_config(replace(data, system_prompt="x")), refusing)
    with pytest.raises(DataError, match=r"gone\.jinja cannot be read"):
        TrainPrompts(run_config(replace(data, chat_template=str(tmp_path / "gone.jinja"))), refusing)


def test_overlong_prompts_are_left_out_and_counted(tokenizer, data, caplog):
    with caplog.at_level(logging.WARNING):
        prompts = TrainPrompts(run_config(replace(data, max_prompt_length=7)), tokenizer)  # p10 and p11 have 8 tokens
    assert (len(prompts.prompts), prompts.prompts.overlong) == (10, 2)
    assert "2 of 12 prompts are over 7 tokens and were left out" in caplog.text


def test_overlong_prompts_are_cut_from_the_left(tokenizer, data):
    cut = replace(data, max_prompt_length=7, overlong="cut", shuffle=False, train_batch_size=12)
    prompts = TrainPrompts(run_config(cut, group_size=1), tokenizer)
    assert (len(prompts.prompts), prompts.prompts.overlong) == (12, 2)
    assert prompt_texts(tokenizer, prompts.draw(0, 12, step=0))[9:] == ["u:p9;a:", ":p10;a:", ":p11;a:"]


@pytest.mark.parametrize("overlong", ["filter", "cut"])
def test_a_text_of_many_characters_is_overlong_at_little_cost(data, tmp_path, overlong):
    seen = []

    class Watched(PreTrainedTokenizerFast):
        def __call__(self, text, **settings):
            seen.extend(map(len, text))
            return super().__call__(text, **settings)

    base = char_tokenizer()
    tokenizer = Watched(
        tokenizer_object=base.backend_tokenizer, pad_token="<pad>", unk_token="<unk>", chat_template=base.chat_template
    )
    rows = [{"problem": "x" * 2_000_000 + "end", "answer": "1"}, {"problem": "p", "answer": "1"}]
    file = write_rows(tmp_path / "long.jsonl", rows)
    settings = replace(data, train_files=[file], train_batch_size=1, overlong=overlong, shuffle=False)
    prompts = TrainPrompts(run_config(settings, group_size=1), tokenizer)
    assert prompts.prompts.overlong == 1 and max(seen) < 1000
    batch = prompts.draw(0, len(prompts.prompts), step=0)
    cut = ["x" * 14 + "end;a:"] if overlong == "cut" else []
    assert prompt_texts(base, batch) == [*cut, "u:p;a:"]


def test_examples_come_before_each_problem(tokenizer, data):
    examples = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    data = replace(data, system_prompt="Be brief", examples=examples, max_prompt_length=40, shuffle=False)
    batch = TrainPrompts(run_config(data), tokenizer).draw(0, 4, step=0)
    assert prompt_texts(tokenizer, batch)[0] == "s:Be brief;u:1+1;a:2;u:p0;a:"
    assert batch["problem"][0] == "p0"
    validation = load_validation(run_config(replace(data, val_files=data.train_files)), tokenizer)
    assert validation is not None
    assert prompt_texts(tokenizer, next(iter(validation.batches())))[0] == "s:Be brief;u:1+1;a:2;u:p0;a:"
    with pytest.raises(
        DataError, match=r"max_prompt_length=20 tokens \(chat template, system prompt and examples included"
    ):
        TrainPrompts(run_config(replace(data, max_prompt_length=20)), tokenizer)


def test_too_few_prompts(tokenizer, data):
    with pytest.raises(DataError, match=r"have 12 prompts, fewer than one batch of data\.train_batch_size=13"):
        TrainPrompts(run_config(replace(data, train_batch_size=13)), tokenizer)
    with pytest.raises(DataError, match=r"have 10 prompts \(2 were over data\.max_prompt_length=7\), fewer"):
        TrainPrompts(run_config(replace(data, train_batch_size=11, max_prompt_length=7)), tokenizer)
    with pytest.raises(DataError, match=r"all 12 prompts of .*train\.jsonl are over data\.max_prompt_length=3"):
        TrainPrompts(run_config(replace(data, max_prompt_length=3)), tokenizer)


def test_a_tokenizer_is_saved_and_opened(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    opened = open_tokenizer(ModelConfig(path=str(tmp_path / "model")))
    assert opened("p1")["input_ids"] == tokenizer("p1")["input_ids"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelError, match="nothing has no tokenizer that can be loaded"):
        open_tokenizer(ModelConfig(path=str(tmp_path / "nothing")))
