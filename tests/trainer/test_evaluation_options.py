import pytest

from cfpo_hybrid.errors import ConfigError
from trainer.cli import parser
from trainer.evaluation_options import EvaluationOptions


def test_every_option_is_on_the_command_line():
    arguments = vars(parser().parse_args(["eval", "model", "a.jsonl", "b.jsonl", "--samples", "4", "--top-p", "1"]))
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
