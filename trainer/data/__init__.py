"""Data, step 1 of the way of a batch: files -> problems -> token prompts -> batches of rows."""

from trainer.data.encoding import PromptEncoder, load_tokenizer
from trainer.data.prompts import EvaluationPrompts, PromptSet, TrainPrompts
from trainer.data.sources import Problem, find_source_problems, read_problems

__all__ = [
    "EvaluationPrompts",
    "Problem",
    "PromptEncoder",
    "PromptSet",
    "TrainPrompts",
    "find_source_problems",
    "load_tokenizer",
    "read_problems",
]
