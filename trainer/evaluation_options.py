"""What ``cfpo eval`` is told."""

from dataclasses import dataclass

from cfpo_hybrid.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """A model, problems, and how responses are sampled and scored.

    Raises:
        ConfigError: every value outside its range, at once.
    """

    model: str
    """A Hugging Face id or folder, a run's checkpoint folder, or a run directory (its newest checkpoint)."""
    files: tuple[str, ...]
    """JSONL, parquet or Hugging Face data set ids, with the columns of training data."""
    output: str | None = None
    """Folder for generations and scores; by default beside the model's name under outputs/eval."""
    greedy: bool = False
    temperature: float = 0.6
    top_p: float = 0.95
    """Sampling of the CFPO paper, section 4.1, "Evaluation"."""
    samples: int = 1
    """Responses a problem; pass@k is reported for k = 1, 2, 4, ... up to this."""
    limit: int | None = None
    """Only the first so many problems."""
    system_prompt: str | None = None
    max_prompt_length: int = 512
    max_response_length: int = 3072
    reward: str = "math"
    """"math" or "path/to/file.py:function"."""
    num_workers: int = 1
    tensor_parallel_size: int = 1
    device: str = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        problems = [f"{option} must be {words}" for option, holds, words in self._rules() if not holds]
        if problems:
            raise ConfigError(problems)

    def _rules(self) -> list[tuple[str, bool, str]]:
        tp, workers = self.tensor_parallel_size, self.num_workers
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
            (f"--limit {self.limit}", self.limit is None or self.limit >= 1, "at least 1"),
            (f"--max-prompt-length {self.max_prompt_length}", self.max_prompt_length >= 1, "at least 1"),
            (f"--max-response-length {self.max_response_length}", self.max_response_length >= 1, "at least 1"),
            (f"--num-workers {workers}", workers >= 1, "at least 1"),
            (f"--tensor-parallel-size {tp}", tp >= 1 and workers % tp == 0, f"a divisor of --num-workers {workers}"),
        ]
