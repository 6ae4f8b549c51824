"""Validation: one answer (or several) to every held-out problem, scored as training responses are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

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
        reward_meta: what the reward workers counted.
    """

    batches: list[DataProto]
    texts: list[str]
    samples: int
    reward_meta: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rewards(self) -> torch.Tensor:
        """``[problem, sample]``; NaN where no reward has an opinion."""
        return self._of_samples("rewards")

    @property
    def verdicts(self) -> torch.Tensor | None:
        """``[problem, sample]``, 1 for right; None where the reward is no verdict."""
        return self._of_samples("verdicts") if all("verdicts" in batch for batch in self.batches) else None

    @property
    def accuracy(self) -> float | None:
        """Share of right responses among those that were judged; None where the reward is no verdict."""
        verdicts = self.verdicts
        return None if verdicts is None else verdicts.nanmean().item()

    def _of_samples(self, column: str) -> torch.Tensor:
        return torch.cat([batch[column] for batch in self.batches]).reshape(-1, self.samples)

    def metrics(self) -> dict[str, float]:
        """What a validation adds to the metrics of a step."""
        lengths = torch.cat([batch["response_lengths"] for batch in self.batches]).float()
        truncated = torch.cat([batch["truncated"] for batch in self.batches]).float()
        accuracy = self.accuracy
        return {
            **({} if accuracy is None else {"val/accuracy": accuracy}),
            "val/reward": self.rewards.nanmean().item(),
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
    batches, texts, reward_meta = [], [], []
    for rows in prompts.batches():
        batch = rows.merge(actors.run(generate, rows, sampling))
        texts += graders.run(RewardWorker.decode, batch)
        scored = graders.run(RewardWorker.score, batch)
        batches.append(batch.merge(scored))
        reward_meta += cast(list[dict[str, Any]], scored.meta["replicas"])
    return Evaluation(batches, texts, prompts.samples, reward_meta)


def validate(
    prompts: ValidationPrompts, actors: WorkerGroup, graders: WorkerGroup, sampling: SamplingSettings
) -> Evaluation:
    """Scores the policy in training on the validation problems."""
    return evaluate_prompts(prompts, actors, graders, sampling, HybridWorker.generate)
