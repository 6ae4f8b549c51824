"""Validation: one answer (or several) to every held-out problem, scored as training responses are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import WorkerGroup
from trainer.data import ValidationPrompts
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker
from workers.rollout.engine import SamplingSettings


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scored answers to a set of problems.

    Args:
        batches: rows with ``rewards``, in the order of the problems.
        texts: the responses of each row.
        samples: rows of one problem.
    """

    batches: list[DataProto]
    texts: list[str]
    samples: int

    @property
    def rewards(self) -> torch.Tensor:
        """``[problem, sample]``."""
        return torch.cat([batch["rewards"] for batch in self.batches]).reshape(-1, self.samples)

    @property
    def accuracy(self) -> float:
        """Mean reward."""
        return self.rewards.mean().item()

    def metrics(self) -> dict[str, float]:
        """What a validation adds to the metrics of a step."""
        lengths = torch.cat([batch["response_lengths"] for batch in self.batches]).float()
        truncated = torch.cat([batch["truncated"] for batch in self.batches]).float()
        return {
            "val/accuracy": self.accuracy,
            "val/response_length": lengths.mean().item(),
            "val/truncated_share": truncated.mean().item(),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a response, for people to read."""
        texts = iter(self.texts)
        for batch in self.batches:
            yield from generation_rows(batch, [next(texts) for _ in range(len(batch))])


def generation_rows(batch: DataProto, texts: list[str]) -> Iterator[dict[str, Any]]:
    """Problem, response, reward and length of each row."""
    columns = (batch["problem"], batch["ground_truth"], batch["rewards"].tolist(), batch["response_lengths"].tolist())
    truncated = batch["truncated"].tolist()
    for problem, truth, reward, length, cut, text in zip(*columns, truncated, texts, strict=True):
        yield {
            "problem": problem,
            "response": text,
            "reward": reward,
            "ground_truth": truth,
            "response_length": length,
            "truncated": cut,
        }


def evaluate_prompts(
    prompts: ValidationPrompts, actors: WorkerGroup, graders: WorkerGroup, sampling: SamplingSettings, generate: Any
) -> Evaluation:
    """Generates and scores every problem.

    Args:
        prompts: the problems.
        actors: workers that generate.
        graders: workers that score.
        sampling: how.
        generate: the actors' method, ``HybridWorker.generate`` or that of another class.
    """
    batches, texts = [], []
    for rows in prompts.batches():
        batch = rows.merge(actors.run(generate, rows, sampling))
        texts += graders.run(RewardWorker.decode, batch)
        batches.append(batch.merge(graders.run(RewardWorker.score, batch)))
    return Evaluation(batches, texts, prompts.samples)


def validate(
    prompts: ValidationPrompts, actors: WorkerGroup, graders: WorkerGroup, sampling: SamplingSettings
) -> Evaluation:
    """Scores the policy in training on the validation problems."""
    return evaluate_prompts(prompts, actors, graders, sampling, HybridWorker.generate)
