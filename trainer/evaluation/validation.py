"""Validation: one answer (or several) to every held-out problem, scored as training responses are."""

from collections.abc import Iterator, Sequence
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
        prompts: the prompt of each row, as the model sees it.
    """

    batches: list[DataProto]
    texts: list[str]
    samples: int
    reward_meta: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

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
        texts, prompts = iter(self.texts), iter(self.prompts)
        for batch in self.batches:
            yield from generation_rows(
                batch, [next(texts) for _ in range(len(batch))], [next(prompts) for _ in range(len(batch))]
            )


def generation_rows(batch: DataProto, texts: Sequence[str], prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What there is to read of each row: prompt and response, reward, its parts, advantage, truth and length.

    Args:
        batch: with rewards; advantages where they are known.
        texts: the responses.
        prompts: as the model sees them.
    """
    columns: dict[str, Sequence[Any]] = {
        "prompt": prompts,
        "problem": list(batch["problem"]),
        "response": texts,
        "reward": batch["rewards"].tolist(),
        "reward_parts": list(batch["reward_parts"]) if "reward_parts" in batch else [],
        "advantage": _advantage_of_rows(batch),
        "ground_truth": list(batch["ground_truth"]),
        "response_length": batch["response_lengths"].tolist(),
        "truncated": batch["truncated"].tolist(),
    }
    known = {name: values for name, values in columns.items() if len(values)}
    for values in zip(*known.values(), strict=True):
        yield dict(zip(known, values, strict=True))


def prompt_texts(batch: DataProto, graders: WorkerGroup) -> list[str]:
    """The prompt of each row with its special tokens, each prompt decoded once."""
    _, row_to_group = torch.unique(batch["group_ids"], return_inverse=True)
    first = torch.full((int(row_to_group.max()) + 1,), len(batch), dtype=torch.int64)
    first = first.scatter_reduce(0, row_to_group, torch.arange(len(batch)), "amin")
    asked = DataProto({"responses": batch["prompts"][first], "response_lengths": batch["prompt_lengths"][first]})
    texts = graders.run(RewardWorker.decode, asked, True)
    return [texts[group] for group in row_to_group.tolist()]


def _advantage_of_rows(batch: DataProto) -> list[float]:
    """One number a row: the mean over its tokens, where each has its own; empty where there are no advantages."""
    if "advantages" not in batch:
        return []
    advantages = batch["advantages"]
    if advantages.ndim == 2:
        mask = batch["response_mask"]
        advantages = (advantages * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return advantages.tolist()


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
    batches, texts, reward_meta, shown = [], [], [], []
    for rows in prompts.batches():
        batch = rows.merge(actors.run(generate, rows, sampling))
        texts += graders.run(RewardWorker.decode, batch)
        shown += prompt_texts(batch, graders)
        scored = graders.run(RewardWorker.score, batch)
        batches.append(batch.merge(scored))
        reward_meta += cast(list[dict[str, Any]], scored.meta["replicas"])
    return Evaluation(batches, texts, prompts.samples, reward_meta, shown)


def validate(
    prompts: ValidationPrompts, actors: WorkerGroup, graders: WorkerGroup, sampling: SamplingSettings
) -> Evaluation:
    """Scores the policy in training on the validation problems."""
    return evaluate_prompts(prompts, actors, graders, sampling, HybridWorker.generate)
