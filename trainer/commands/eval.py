"""``cfpo eval MODEL [FILE ...] [key=value ...]``: scores a checkpoint or Hugging Face model on problems."""

from argparse import ArgumentParser, Namespace
from typing import Any

from trainer.commands.arguments import Say

OPTIONS: tuple[tuple[str, str, type], ...] = (
    ("--temperature", "trainer.val_temperature", float),
    ("--top-p", "trainer.val_top_p", float),
    ("--samples", "trainer.val_samples", int),
    ("--seed", "trainer.seed", int),
    ("--limit", "data.val_limit", int),
    ("--system-prompt", "data.system_prompt", str),
    ("--max-prompt-length", "data.max_prompt_length", int),
    ("--max-response-length", "data.max_response_length", int),
    ("--reward", "reward.name", str),
    ("--pass-threshold", "reward.pass_threshold", float),
    ("--num-workers", "trainer.num_workers", int),
    ("--tensor-parallel-size", "rollout.tensor_parallel_size", int),
    ("--device", "trainer.device", str),
)
"""Short words for settings that are often given."""


def add_arguments(parser: ArgumentParser) -> None:
    """Model, files and settings."""
    parser.add_argument("model", help="run directory, export, checkpoint folder, or Hugging Face id or folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="FILE|key=value",
        help="problems: JSONL, parquet or data set ids, or sets of them as NAME=FILE; by default those that the model's run "
        "validates on. Settings over those of its run, e.g. data.system_prompt=null",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for generations and scores")
    parser.add_argument("--greedy", action="store_true", help="as trainer.val_temperature=0")
    for option, key, kind in OPTIONS:
        parser.add_argument(option, type=kind, dest=key, metavar=kind.__name__.upper(), help=f"as {key}=...")


def run(arguments: Namespace, say: Say) -> int:
    """Evaluates."""
    from trainer.evaluation.evaluate import evaluate
    from trainer.evaluation.options import load_evaluation

    given = vars(arguments)
    settings: dict[str, Any] = {key: given[key] for _, key, _ in OPTIONS if given[key] is not None}
    if arguments.greedy:
        settings["trainer.val_temperature"] = 0.0
    evaluate(load_evaluation(arguments.model, arguments.overrides, settings), arguments.output)
    return 0
