import pytest

from cfpo_hybrid.errors import ConfigError
from trainer.cli import parse
from trainer.evaluation.options import EvaluationOptions, Lengths


def test_every_option_is_on_the_command_line():
    arguments = vars(parse(["eval", "model", "a.jsonl", "b.jsonl", "--samples", "4", "--top-p", "1"]))
    defaults = EvaluationOptions(model="model", files=("a.jsonl", "b.jsonl"))
    for name in EvaluationOptions.__dataclass_fields__:
        assert name in arguments
        if name not in ("files", "samples", "top_p"):
            assert arguments[name] == getattr(defaults, name)
    assert arguments["samples"] == 4
    assert arguments["top_p"] == 1.0


def test_all_values_out_of_range_are_found():
    with pytest.raises(ConfigError) as caught:
        EvaluationOptions(
            model="m", files=("f",), temperature=0, top_p=2, samples=0, num_workers=3, tensor_parallel_size=2
        )
    assert len(caught.value.problems) == 4


def test_greedy_samples_once():
    with pytest.raises(ConfigError, match="all would be equal"):
        EvaluationOptions(model="m", files=("f",), greedy=True, samples=4)


def test_files_may_be_sets_with_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.jsonl").write_text("")
    assert EvaluationOptions(model="m", files=("a.jsonl", "hub:x:test")).sets == {"": ["a.jsonl", "hub:x:test"]}
    named = EvaluationOptions(model="m", files=("math=a.jsonl", "sums=b.jsonl", "math=hub:x:test[:5]"))
    assert named.sets == {"math": ["a.jsonl", "hub:x:test[:5]"], "sums": ["b.jsonl"]}
    assert EvaluationOptions(model="m", files=("lr=1.jsonl",)).sets == {"": ["lr=1.jsonl"]}  # a file that is there
    with pytest.raises(ConfigError, match=r"'b\.jsonl' has no set, .* NAME=FILE for all files or for none"):
        EvaluationOptions(model="m", files=("math=a.jsonl", "b.jsonl"))
    with pytest.raises(ConfigError, match="a set cannot have the name 'reward'"):
        EvaluationOptions(model="m", files=("reward=a.jsonl",))


def options(**lengths: int) -> EvaluationOptions:
    return EvaluationOptions(model="m", files=("f",), **lengths)  # type: ignore[arg-type]


def test_lengths_fit_the_model_that_is_evaluated():
    assert Lengths.of(options(), 32768) == Lengths(prompt=512, response=3072)
    assert Lengths.of(options(), 512) == Lengths(prompt=128, response=384)  # the quickstart's model
    assert Lengths.of(options(max_response_length=500), 512) == Lengths(prompt=12, response=500)
    assert Lengths.of(options(max_prompt_length=500), 512) == Lengths(prompt=500, response=12)


@pytest.mark.parametrize(
    "lengths", [{"max_prompt_length": 512}, {"max_response_length": 512}, {"max_prompt_length": 600}]
)
def test_lengths_that_do_not_fit_are_refused(lengths: dict[str, int]):
    with pytest.raises(ConfigError, match="exceed the 512 positions of m"):
        Lengths.of(options(**lengths), 512)
