"""``cfpo eval MODEL FILE ...``: scores a checkpoint or Hugging Face model on problems."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Any

from trainer.commands.arguments import Say
from trainer.evaluation.options import EvaluationOptions


def add_arguments(parser: ArgumentParser) -> None:
    """Those of ``EvaluationOptions``, by their names."""
    defaults = EvaluationOptions(model="", files=())
    parser.add_argument("model", help="Hugging Face id or folder, checkpoint folder, or run directory")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="problems: JSONL, parquet or data set ids; or sets of them, NAME=FILE"
    )
    parser.add_argument("--output", metavar="DIR", help="folder for generations and scores")
    parser.add_argument("--greedy", action="store_true", help="the likeliest tokens instead of sampling")
    parser.add_argument("--system-prompt", metavar="TEXT")
    parser.add_argument(
        "--chat-template-kwargs",
        type=_mapping,
        default={},
        metavar="JSON",
        help="""what the chat template is told, e.g. '{"enable_thinking": false}'""",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a response; may be given several times"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each set")
    for name, kind in (
        ("temperature", float),
        ("top_p", float),
        ("samples", int),
        ("num_workers", int),
        ("tensor_parallel_size", int),
        ("seed", int),
    ):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default {default}")
    parser.add_argument(
        "--max-prompt-length", type=int, metavar="N", help="default 512, at most a quarter of the model's positions"
    )
    parser.add_argument(
        "--max-response-length", type=int, metavar="N", help="default 3072, at most what prompts leave of them"
    )
    parser.add_argument("--reward", default=defaults.reward, help='"math" or "path/to/file.py:function"')
    parser.add_argument(
        "--pass-threshold", type=float, metavar="X", help="reward from which a response is right; default 1 for math"
    )
    parser.add_argument("--device", default=defaults.device, choices=("auto", "cpu", "cuda"))


def run(arguments: Namespace, say: Say) -> int:
    """Evaluates."""
    from trainer.evaluation.evaluate import evaluate

    values: dict[str, Any] = {option.name: vars(arguments)[option.name] for option in fields(EvaluationOptions)}
    values["files"] = tuple(arguments.files)
    evaluate(EvaluationOptions(**values))
    return 0


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no mapping")
    return value
