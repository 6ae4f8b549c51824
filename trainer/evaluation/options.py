"""What ``cfpo eval`` is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ConfigError
from trainer.run.validation_names import METRICS_OF_A_SET, SET_NAME

MAX_PROMPT_LENGTH, MAX_RESPONSE_LENGTH = 512, 3072
"""Lengths of the CFPO paper (table 3), for models that have positions enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """A model, problems, and how responses are sampled and scored.

    Raises:
        ConfigError: every value outside its range, at once.
    """

    model: str
    """A Hugging Face id or folder, a run's checkpoint folder, or a run directory (its last state)."""
    files: tuple[str, ...]
    """JSONL, parquet or Hugging Face data set ids, with the columns of training data; or all of them as NAME=FILE, which
    are sets with scores of their own."""
    output: str | None = None
    """Folder for generations and scores; by default under outputs/eval, by the model's path."""
    greedy: bool = False
    temperature: float = 0.6
    top_p: float = 0.95
    """Sampling of the CFPO paper, section 4.1, "Evaluation"."""
    samples: int = 1
    """Responses a problem; pass@k is reported for k = 1, 2, 4, ... up to this, where the reward is a verdict."""
    limit: int | None = None
    """Only the first so many problems of each set."""
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told besides the chat."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a response, beside the model's end-of-sequence tokens."""
    max_prompt_length: int | None = None
    """Tokens; by default 512, and at most a quarter of the model's positions."""
    max_response_length: int | None = None
    """Tokens; by default 3072, and at most what prompts leave of the model's positions."""
    reward: str = "math"
    """"math" or "path/to/file.py:function"."""
    pass_threshold: float | None = None
    """A response is right when its reward reaches this; None: 1 for "math", while other rewards have neither accuracy nor
    pass@k."""
    num_workers: int = 1
    tensor_parallel_size: int = 1
    device: str = "auto"
    seed: int = 1

    @property
    def sets(self) -> dict[str, list[str]]:
        """The files of each set; "" has no name."""
        sets: dict[str, list[str]] = {}
        for word in self.files:
            name, file = _named(word)
            sets.setdefault(name, []).append(file)
        return sets

    def __post_init__(self) -> None:
        problems = [f"{option} must be {words}" for option, holds, words in self._rules() if not holds]
        names = list(self.sets)
        if "" in names and len(names) > 1:
            problems.append(
                f"'{self.sets[''][0]}' has no set, but other files have one: write NAME=FILE for all files or for none"
            )
        problems += [
            f"a set cannot have the name '{name}', which is a score of every set"
            for name in names
            if name in METRICS_OF_A_SET
        ]
        if problems:
            raise ConfigError(problems)

    def _rules(self) -> list[tuple[str, bool, str]]:
        tp, workers = self.tensor_parallel_size, self.num_workers
        prompt, response = self.max_prompt_length, self.max_response_length
        return [
            (
                f"--temperature {self.temperature}",
                self.temperature > 0,
                "above 0; use --greedy for the likeliest tokens",
            ),
            (f"--top-p {self.top_p}", 0 < self.top_p <= 1, "above 0 and at most 1"),
            (f"--samples {self.samples}", self.samples >= 1, "at least 1"),
            (
                f"--samples {self.samples}",
                not (self.greedy and self.samples > 1),
                "1 with --greedy: all would be equal",
            ),
            ("--stop", "" not in self.stop, "a text that is not empty"),
            (f"--limit {self.limit}", self.limit is None or self.limit >= 1, "at least 1"),
            (f"--max-prompt-length {prompt}", prompt is None or prompt >= 1, "at least 1"),
            (f"--max-response-length {response}", response is None or response >= 1, "at least 1"),
            (f"--num-workers {workers}", workers >= 1, "at least 1"),
            (f"--tensor-parallel-size {tp}", tp >= 1 and workers % tp == 0, f"a divisor of --num-workers {workers}"),
        ]


def _named(word: str) -> tuple[str, str]:
    """Set and file of ``math500=data/math500.jsonl``; a path that exists is a file, whatever it is called."""
    name, equals, file = word.partition("=")
    if not equals or SET_NAME.fullmatch(name) is None or Path(word).exists():
        return "", word
    return name, file


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Longest prompt and longest response, in tokens."""

    prompt: int
    response: int

    @classmethod
    def of(cls, options: EvaluationOptions, positions: int) -> "Lengths":
        """Those that are asked for, or else as many as a model with so many positions has room for.

        Example: with 512 positions and nothing asked for, 128 and 384.

        Raises:
            ConfigError: they do not fit.
        """
        asked = options.max_response_length
        room = positions - (asked or 1)
        prompt = options.max_prompt_length or max(1, min(MAX_PROMPT_LENGTH, positions // 4, room))
        response = asked or min(MAX_RESPONSE_LENGTH, positions - prompt)
        if response < 1 or prompt + response > positions:
            raise ConfigError(
                f"--max-prompt-length {prompt} and --max-response-length {max(response, 1)} together exceed the {positions} "
                f"positions of {options.model}; lower one of them, or leave them out"
            )
        return cls(prompt=prompt, response=response)
