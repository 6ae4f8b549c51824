"""Validation prompts: once through every set, the seeds of one set whatever the others are, over-long problems kept in mind."""

from dataclasses import replace

import pytest
from data_world import char_tokenizer, numbered_rows, run_config, write_rows

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import DataProto
from trainer.config import DataConfig
from trainer.data import load_validation


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture
def data(tmp_path):
    return DataConfig(
        train_files=[], val_files=[write_rows(tmp_path / "val.jsonl", numbered_rows(5))], max_prompt_length=20
    )


def validation_of(config, tokenizer):
    validation = load_validation(config, tokenizer)
    assert validation is not None
    return validation


def test_validation_goes_once_through_the_file_in_order(tokenizer, data):
    validation = validation_of(run_config(replace(data, val_batch_size=2), val_samples=3), tokenizer)
    batches = list(validation.batches())
    assert len(validation) == 5 and [len(batch) for batch in batches] == [6, 6, 3]
    whole = DataProto.concat(batches)
    assert list(whole["problem"]) == [f"p{n}" for n in range(5) for _ in range(3)]
    assert whole["group_ids"].tolist() == [n for n in range(5) for _ in range(3)]
    assert whole["sample_ids"].tolist() == [0, 1, 2] * 5
    assert len(whole["seeds"].unique()) == 15
    (at_once,) = validation_of(run_config(data, val_samples=3), tokenizer).batches()
    assert at_once["seeds"].tolist() == whole["seeds"].tolist()  # however it is cut into batches


def test_validation_may_be_limited_or_absent(tokenizer, data):
    assert len(validation_of(run_config(replace(data, val_limit=2)), tokenizer)) == 2
    assert load_validation(run_config(replace(data, val_files=None)), tokenizer) is None


def test_sets_follow_each_other_and_none_changes_the_seeds_of_another(tokenizer, data, tmp_path):
    more = write_rows(tmp_path / "more.jsonl", numbered_rows(3))
    both = replace(
        data, val_files=None, val_sets={"first": data.val_files, "more": [more, more], "off": []}, val_limit=4
    )
    validation = validation_of(run_config(replace(both, val_batch_size=3), val_samples=2), tokenizer)
    whole = DataProto.concat(list(validation.batches()))
    assert list(whole["problem"][::2]) == [
        "p0",
        "p1",
        "p2",
        "p3",
        "p0",
        "p1",
        "p2",
        "p0",
    ]  # the limit is each set's own
    assert validation.set_names == ["first"] * 4 + ["more"] * 4
    assert whole["group_ids"].tolist() == [n for n in range(8) for _ in range(2)]
    alone = replace(both, val_sets={"more": [more, more]})
    (own,) = validation_of(run_config(alone, val_samples=2), tokenizer).batches()
    assert own["seeds"].tolist() == whole["seeds"].tolist()[8:]
    unnamed = replace(both, val_sets={}, val_files=[more, more])
    (same,) = validation_of(run_config(unnamed, val_samples=2), tokenizer).batches()
    assert same["seeds"].tolist() == own["seeds"].tolist()


def test_overlong_problems_are_told_with_their_set(tokenizer, tmp_path, caplog):
    file = write_rows(tmp_path / "val.jsonl", numbered_rows(12))  # p10 and p11 have 8 tokens
    data = DataConfig(train_files=[], val_sets={"math": [file]}, max_prompt_length=7)
    validation = validation_of(run_config(data), tokenizer)
    assert (len(validation), validation.parts["math/"].overlong, validation.parts["math/"].unanswered) == (10, 2, 2)
    said = "2 of 12 prompts are over 7 tokens and get no response: in validation (of the set math) they count as wrong"
    assert said in caplog.text
    validation = validation_of(run_config(replace(data, overlong="cut")), tokenizer)
    assert (len(validation), validation.parts[""].overlong, validation.parts[""].unanswered) == (12, 2, 0)


def test_a_set_whose_prompts_are_all_too_long_is_a_mistake(tokenizer, data):
    with pytest.raises(DataError, match=r"all 5 prompts of .*val\.jsonl are over data\.max_prompt_length=3"):
        load_validation(run_config(replace(data, max_prompt_length=3)), tokenizer)
