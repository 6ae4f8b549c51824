"""Configuration of the data: files, columns, prompts and lengths."""

from dataclasses import dataclass

from omegaconf import MISSING

OVERLONG = ("filter", "cut")
"""What may be done with prompts longer than ``max_prompt_length``."""

CURRICULA = ("none", "order", "widen")
"""How levels may decide which prompts come when."""


@dataclass(frozen=True)
class DataConfig:
    """Which problems are trained and validated on, and how they become prompts.

    A file is a path that ends in .jsonl or .parquet, or a Hugging Face data set: ``hub:NAME:SPLIT`` or
    ``hub:NAME:CONFIG:SPLIT``, e.g. ``hub:openai/gsm8k:main:train``.
    """

    train_files: list[str] = MISSING
    """One or several files; their rows are joined."""
    val_files: list[str] | None = None
    """Problems to validate on; none validates never."""
    train_batch_size: int = 128
    """Prompts of a rollout step."""
    val_batch_size: int | None = None
    """Prompts that are validated at a time; all by default."""
    val_limit: int | None = None
    """Only the first so many problems of val_files."""
    max_prompt_length: int = 512
    """Tokens of a prompt, chat template and system prompt included."""
    max_response_length: int = 1024
    """Tokens of a response."""
    overlong: str = "filter"
    """Prompts over max_prompt_length: "filter" leaves them out, "cut" keeps only their last tokens."""
    shuffle: bool = True
    """A new order every epoch, from trainer.seed; otherwise the order of the files."""
    curriculum: str = "none"
    """"order": each epoch goes from easy levels to hard ones; "widen": begins with the easiest level alone, the others
    come in one by one."""
    curriculum_steps: int = 0
    """Rollout steps (of train_batch_size prompts) over which "widen" lets the levels in, each after an equal share."""
    level_key: str = "level"
    """Column of the level: a number, or a text with one, e.g. "Level 3"; rows without one count as the hardest."""
    system_prompt: str | None = None
    """Becomes the chat's system message."""
    chat_template: str | None = None
    """A Jinja file to use in the place of the tokenizer's own chat template."""
    problem_key: str = "problem"
    """Column of the question."""
    answer_key: str = "answer"
    """Column of the final answer; what a response is compared with where it is there."""
    solution_key: str = "solution"
    """Column of a worked solution with a boxed answer; used where there is no answer."""
