"""Validation: one answer (or several) to every held-out problem, scored as training responses are, and its figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import WorkerGroup
from trainer.data import ValidationPrompts
from trainer.data.validation import Part
from trainer.evaluation.scores import final_answer, majority_chance, mean_and_error, pass_at_k, powers_up_to
from trainer.run.metrics import counted_rewards
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker
from workers.rollout.engine import SamplingSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scored answers to sets of problems.

    Args:
        batches: rows with ``rewards``, in the order of the problems.
        texts: the responses of each row.
        samples: rows of one problem.
        parts: the problems that have figures of their own, by what the names of those begin with.
        set_names: the set of each problem; "" has no name.
        reward_meta: what the reward workers counted.
        prompts: the prompt of each row, as the model sees it.
    """

    batches: list[DataProto]
    texts: list[str]
    samples: int
    parts: Mapping[str, Part]
    set_names: Sequence[str]
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

    def metrics(self) -> dict[str, float]:
        """The figures of every part, and what the rewards counted and measured themselves, as ``reward/NAME``.

        Of a part there are ``reward``, ``reward_stderr``, ``response_length``, ``truncated_share`` and ``overlong`` (problems
        whose prompts are too long), and where the reward is a verdict ``accuracy``, ``accuracy_stderr``, and with several
        samples ``pass@k`` and ``maj@n``. What has no value, e.g. where no reward has an opinion, is left out.
        """
        answers = [final_answer(text) for text in self.texts] if self.samples > 1 else []
        columns = {name: self._of_samples(name) for name in ("rewards", "response_lengths", "truncated")}
        found: dict[str, float | None] = {}
        for prefix, part in self.parts.items():
            rows = torch.tensor(part.answered, dtype=torch.int64)
            figures = self._verdict_figures(part, answers)
            figures["reward"], figures["reward_stderr"] = mean_and_error(columns["rewards"][rows])
            figures["response_length"], _ = mean_and_error(columns["response_lengths"][rows].float())
            figures["truncated_share"], _ = mean_and_error(columns["truncated"][rows].float())
            figures["overlong"] = float(part.overlong)
            found |= {f"{prefix}{name}": value for name, value in figures.items()}
        known = {name: value for name, value in found.items() if value is not None}
        return known | counted_rewards(self.reward_meta)

    def right(self, part: Part) -> torch.Tensor | None:
        """Which responses to a part are right, ``[problem, sample]``, the problems without a response last, which are not.

        None where the reward is no verdict, or has judged nothing.
        """
        verdicts = self._verdicts_of(part)
        return None if verdicts is None or verdicts.isnan().all() else verdicts == 1.0

    def _verdicts_of(self, part: Part) -> torch.Tensor | None:
        if self.verdicts is None:
            return None
        answered = torch.tensor(part.answered, dtype=torch.int64)
        return torch.cat([self.verdicts[answered], torch.zeros(part.unanswered, self.samples)])

    def _verdict_figures(self, part: Part, answers: Sequence[str | None]) -> dict[str, float | None]:
        """Those of a reward that is a verdict; what was not judged counts in no accuracy, and as wrong in pass@k and maj@n."""
        verdicts, right, samples = self._verdicts_of(part), self.right(part), self.samples
        if verdicts is None or right is None:
            return {}
        accuracy, error = mean_and_error(verdicts)
        figures = {"accuracy": accuracy, "accuracy_stderr": error}
        if samples == 1:
            return figures
        figures |= {f"pass@{k}": pass_at_k(right, k) for k in powers_up_to(samples)}
        votes = [answers[number * samples : (number + 1) * samples] for number in part.answered]
        if any(answer is not None for vote in votes for answer in vote):
            chances = [
                majority_chance(one.tolist(), vote) for one, vote in zip(right[: len(votes)], votes, strict=True)
            ]
            figures[f"maj@{samples}"] = sum(chances) / len(right)
        return figures

    def _of_samples(self, column: str) -> torch.Tensor:
        return torch.cat([batch[column] for batch in self.batches]).reshape(-1, self.samples)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a response, for people to read."""
        texts, prompts = iter(self.texts), iter(self.prompts)
        names = (name for name in self.set_names for _ in range(self.samples))
        for batch in self.batches:
            size = range(len(batch))
            for row in generation_rows(batch, [next(texts) for _ in size], [next(prompts) for _ in size]):
                name = next(names)
                yield {"set": name, **row} if name else row


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
    return Evaluation(
        batches=batches,
        texts=texts,
        samples=prompts.samples,
        parts=prompts.parts,
        set_names=prompts.set_names,
        reward_meta=reward_meta,
        prompts=shown,
    )


def validate(
    prompts: ValidationPrompts, actors: WorkerGroup, graders: WorkerGroup, sampling: SamplingSettings
) -> Evaluation:
    """Scores the policy in training on the validation problems."""
    return evaluate_prompts(prompts, actors, graders, sampling, HybridWorker.generate)
