"""``cfpo eval MODEL FILE ...``: scores a checkpoint or Hugging Face model on problems."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.options import EvaluationOptions


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Evaluates; the arguments have the names of the options."""
    values: dict[str, Any] = {option.name: vars(arguments)[option.name] for option in fields(EvaluationOptions)}
    values["files"] = tuple(arguments.files)
    evaluate(EvaluationOptions(**values))
    return 0
