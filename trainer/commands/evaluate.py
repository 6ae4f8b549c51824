"""``cfpo eval MODEL FILE ...``: scores a checkpoint or Hugging Face model on problems."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields

from trainer.evaluation_options import EvaluationOptions
from trainer.evaluate import evaluate


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Evaluates; the arguments have the names of the options."""
    values = {option.name: getattr(arguments, option.name) for option in fields(EvaluationOptions)}
    evaluate(EvaluationOptions(**values | {"files": tuple(arguments.files)}))
    return 0
