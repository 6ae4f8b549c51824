"""Configuration of the data: where prompts come from, how they become tokens, how many make a batch."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """Training and validation prompts."""

    train_files: list[str] = field(default_factory=list)
    """``.jsonl`` or ``.parquet`` files, or ``hub:owner/name[:config[:split]]`` for a Hugging Face data set."""
    val_files: list[str] = field(default_factory=list)
    """The same for validation; none means no validation."""
    train_batch_size: int = 128
    """Prompts of a rollout step, over all workers."""
    val_batch_size: int = 512
    """Prompts generated at one time in validation."""
    val_limit: int | None = None
    """Only the first so many validation problems."""
    max_prompt_length: int = 512
    """Tokens, chat template included."""
    max_response_length: int = 1024
    """Tokens, stop token included."""
    overlong: str = "filter"
    """Prompts above max_prompt_length: "filter" drops them, "cut" keeps their last tokens. Both are counted."""
    shuffle: bool = True
    """A new seeded order each epoch; off keeps the order of the files."""
    system_prompt: str | None = None
    chat_template: str | None = None
    """A Jinja file, or "plain" for the bare text; by default the tokenizer's own template."""
    problem_key: str = "problem"
    solution_key: str = "solution"
    """Column with a worked solution that ends in \\boxed{answer}; needed where there is no answer column."""
    answer_key: str = "answer"
    """Column with the bare answer; preferred where both are present."""
