"""Problems to validate on: one set or several with names, and the parts of them that have figures of their own."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfpo_hybrid.protocol import DataProto
from trainer.config import Config, DataConfig
from trainer.data.columns import value_at
from trainer.data.order import VALIDATION, stable_hash
from trainer.data.prompts import PromptSet, load_prompts
from trainer.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MOST_SOURCES = 32
"""A column with more values than this does not say where rows come from."""
_LONGEST_NAME = 60
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Part:
    """Validation problems that have figures of their own: all, those of a set, or those of one source within a set.

    Args:
        answered: numbers of the problems that get responses, counted over all batches.
        overlong: problems whose prompts are over ``data.max_prompt_length``.
        unanswered: how many of those get no response, because they are not cut.
    """

    answered: Sequence[int]
    overlong: int
    unanswered: int


class ValidationPrompts:
    """Validation prompts: every problem of every set once through, set after set in the order of their files.

    Group ids number the problems over all batches. Seeds depend neither on the step, so that validations of one run
    differ by their policy alone, nor on the other sets.

    Args:
        config: files, columns and lengths.
        tokenizer: of the model.
        samples: responses a problem.
        seed: of their sampling.

    Raises:
        DataError: files that cannot be used, or a set whose prompts are all too long.
    """

    def __init__(
        self, config: DataConfig, tokenizer: "PreTrainedTokenizerBase", *, samples: int = 1, seed: int = 0
    ) -> None:
        sets = {name: _load(name, files, config, tokenizer) for name, files in config.validation_sets.items()}
        self.prompts = _joined(list(sets.values()))
        self.samples = samples
        self.parts = _parts(sets, config)
        self.set_names = [name for name, prompts in sets.items() for _ in range(len(prompts))]
        self._numbers = np.concatenate([np.arange(len(prompts)) for prompts in sets.values()])
        self._batch_size, self._seed = config.val_batch_size or len(self.prompts), seed

    def __len__(self) -> int:
        return len(self.prompts)

    def batches(self) -> Iterator[DataProto]:
        """All problems, ``val_batch_size`` at a time, each ``samples`` times in succession."""
        for start in range(0, len(self.prompts), self._batch_size):
            chosen = np.arange(start, min(start + self._batch_size, len(self.prompts)))
            numbers = self._numbers[chosen]
            seeds = stable_hash(VALIDATION, self._seed, numbers[:, None], np.arange(self.samples))
            yield self.prompts.batch(chosen, chosen, seeds)


def load_validation(config: Config, tokenizer: "PreTrainedTokenizerBase") -> ValidationPrompts | None:
    """The validation prompts of a run; None when it has no validation files."""
    if not config.data.validation_sets:
        return None
    return ValidationPrompts(config.data, tokenizer, samples=config.trainer.val_samples, seed=config.trainer.seed)


def _load(name: str, files: Sequence[str], config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> PromptSet:
    of_set = f" (of the set {name})" if name else ""
    told = f"get no response: in validation{of_set} they count as wrong"
    return load_prompts(files, config, tokenizer, config.val_limit, told)


def _joined(sets: Sequence[PromptSet]) -> PromptSet:
    return PromptSet(
        records=[record for prompts in sets for record in prompts.records],
        tokens=[ids for prompts in sets for ids in prompts.tokens],
        too_long=[record for prompts in sets for record in prompts.too_long],
    )


def _parts(sets: Mapping[str, PromptSet], config: DataConfig) -> dict[str, Part]:
    """By what their figures' names begin with: "" for all problems, "math500/", "math500/source/aime/"."""
    cut, first = config.overlong == "cut", 0

    def part(answered: Sequence[int], overlong: int) -> Part:
        return Part(answered=answered, overlong=overlong, unanswered=0 if cut else overlong)

    everything = _joined(list(sets.values()))
    parts = {"": part(range(len(everything)), everything.overlong)}
    for name, prompts in sets.items():
        numbers = range(first, first + len(prompts))
        prefix = f"{name}/" if name else ""
        parts[prefix] = part(numbers, prompts.overlong)
        of_rows, of_long = ([_source(one, config) for one in rows] for rows in (prompts.records, prompts.too_long))
        for source, label in _labels({*of_rows, *of_long}, prefix, config).items():
            answered = [number for number, of_row in zip(numbers, of_rows, strict=True) if of_row == source]
            parts[f"{prefix}source/{label}/"] = part(answered, of_long.count(source))
        first += len(prompts)
    return parts


def _source(record: Record, config: DataConfig) -> str:
    value = value_at(record.extra, config.source_key)
    return "" if value is None else str(value)


def _labels(sources: set[str], prefix: str, config: DataConfig) -> dict[str, str]:
    """What each source is called in metrics; nothing where there are no two, or so many that they are none."""
    if len(sources) > MOST_SOURCES:
        logger.warning(
            "the validation set %s has %d values in the column '%s' (data.source_key), more than %d: it has no metrics "
            "by source",
            *(prefix.rstrip("/") or "of data.val_files", len(sources), config.source_key, MOST_SOURCES),
        )
    if not 1 < len(sources) <= MOST_SOURCES:
        return {}
    labels: dict[str, str] = {}
    for source in sorted(sources):
        cleaned = _NOT_IN_NAMES.sub("_", source)[:_LONGEST_NAME].strip("_") or "none"
        label, number = cleaned, 1
        while label in labels.values():
            number += 1
            label = f"{cleaned}_{number}"
        labels[source] = label
    return labels
