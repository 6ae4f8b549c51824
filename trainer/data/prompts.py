"""Batches of prompts: training in a seeded order that a restart continues, evaluation in the order of the files."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import DataProto
from trainer.config.data_config import DataConfig
from trainer.data.encoding import PromptEncoder
from trainer.data.seeds import sampling_seeds
from trainer.data.sources import Problem, read_problems

logger = logging.getLogger(__name__)

EVALUATION_STEP = 2**40
"""Stands for the step in the seeds of evaluation, so that they never coincide with training's."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Problems with their prompt tokens, over-long ones dealt with.

    Args:
        problems: in the order of the files.
        tokens: the prompt of each.
        num_filtered: over-long prompts that were dropped.
        num_cut: over-long prompts of which only the last tokens were kept.
    """

    problems: list[Problem]
    tokens: list[list[int]]
    num_filtered: int
    num_cut: int

    @classmethod
    def load(
        cls, sources: Sequence[str], config: DataConfig, encoder: PromptEncoder, *, limit: int | None = None
    ) -> "PromptSet":
        """Reads and encodes; with ``limit`` only the first problems.

        Raises:
            DataError: a source that cannot be used, or nothing left after the over-long prompts.
        """
        problems = read_problems(sources, config)[:limit]
        tokens = encoder.encode(problems)
        longest = config.max_prompt_length
        num_long = sum(len(prompt) > longest for prompt in tokens)
        if num_long and config.overlong == "filter":
            kept = [index for index, prompt in enumerate(tokens) if len(prompt) <= longest]
            problems, tokens = [problems[index] for index in kept], [tokens[index] for index in kept]
            logger.warning("dropped %d of %d prompts above %d tokens", num_long, num_long + len(kept), longest)
        elif num_long:
            tokens = [prompt[-longest:] for prompt in tokens]
            logger.warning("cut %d of %d prompts to their last %d tokens", num_long, len(tokens), longest)
        if not problems:
            raise DataError(
                f"all {num_long} prompts of {', '.join(sources)} are above data.max_prompt_length={longest} tokens; raise "
                "it, or shorten data.system_prompt"
            )
        is_filter = config.overlong == "filter"
        return cls(problems, tokens, num_long if is_filter else 0, 0 if is_filter else num_long)

    def __len__(self) -> int:
        return len(self.problems)

    def batch(self, indices: Sequence[int], *, samples: int, seed: int, step: int) -> DataProto:
        """Rows of the problems at ``indices``, each ``samples`` times in succession."""
        prompts = [self.tokens[index] for index in indices]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        padded[torch.arange(padded.shape[1]) < lengths[:, None]] = torch.tensor(np.concatenate(prompts))
        repeats = torch.arange(len(prompts)).repeat_interleave(samples)
        chosen = [self.problems[indices[place]] for place in repeats.tolist()]
        sample_ids = torch.arange(samples).repeat(len(prompts))
        return DataProto(
            {
                "prompts": padded[repeats],
                "prompt_lengths": lengths[repeats],
                "group_ids": repeats,
                "sample_ids": sample_ids,
                "seeds": sampling_seeds(seed, step, repeats, sample_ids),
                "problem": [problem.text for problem in chosen],
                "ground_truth": [problem.ground_truth for problem in chosen],
                "extra": [problem.extra for problem in chosen],
            }
        )


class TrainPrompts:
    """Training prompts by rollout step; the position is a function of the step alone, so a restart continues it.

    Args:
        prompts: the training set.
        batch_size: prompts of a step.
        group_size: responses of a prompt.
        seed: of the order and of sampling.
        shuffle: a new order each epoch.

    Raises:
        DataError: fewer prompts than one batch.
    """

    def __init__(
        self, prompts: PromptSet, *, batch_size: int, group_size: int, seed: int, shuffle: bool = True
    ) -> None:
        if len(prompts) < batch_size:
            raise DataError(
                f"data.train_batch_size={batch_size} needs as many prompts; the training files hold {len(prompts)}"
                f"{f' ({prompts.num_filtered} over-long ones dropped)' if prompts.num_filtered else ''}; "
                "lower it or add data"
            )
        self.prompts, self.batch_size, self.group_size = prompts, batch_size, group_size
        self._seed, self._shuffle = seed, shuffle

    def next_batch(self, step: int) -> DataProto:
        """The rows of rollout step ``step``, counted from 0: ``batch_size`` prompts, ``group_size`` rows each."""
        position = step * self.batch_size
        indices: list[int] = []
        while len(indices) < self.batch_size:
            epoch, place = divmod(position + len(indices), len(self.prompts))
            indices += self._order(epoch)[place : place + self.batch_size - len(indices)].tolist()
        return self.prompts.batch(indices, samples=self.group_size, seed=self._seed, step=step)

    def consumed(self, steps: int) -> int:
        """Prompts drawn in the first ``steps`` steps."""
        return steps * self.batch_size

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self.prompts))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return torch.randperm(len(self.prompts), generator=generator)


@dataclass(frozen=True, slots=True)
class EvaluationPrompts:
    """Every problem of a set in order, each ``samples`` times, in batches.

    Args:
        prompts: the set.
        batch_size: prompts of a batch.
        samples: responses of a prompt.
        seed: of sampling.
    """

    prompts: PromptSet
    batch_size: int
    samples: int
    seed: int

    def __iter__(self) -> Iterator[DataProto]:
        for number, start in enumerate(range(0, len(self.prompts), self.batch_size)):
            indices = range(start, min(start + self.batch_size, len(self.prompts)))
            yield self.prompts.batch(indices, samples=self.samples, seed=self.seed, step=EVALUATION_STEP + number)
