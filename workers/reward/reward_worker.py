"""The reward worker, step 3 of the way of a batch: turns response tokens into text and text into rewards."""

import logging

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.config import ModelConfig, RewardConfig
from workers.reward.grader_pool import Grade, Status
from workers.reward.scorers import Response, build_scorer

logger = logging.getLogger(__name__)


class RewardWorker:
    """One rank of scoring; it needs no GPU, and its graders run in processes of their own.

    Args:
        context: the rank's place in its group.
        model: whose tokenizer wrote the responses.
        reward: how responses are scored.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        RewardError: the reward function cannot be found or loaded.
    """

    def __init__(self, context: WorkerContext, model: ModelConfig, reward: RewardConfig) -> None:
        self.context = context
        self._tokenizer = _load_tokenizer(model)
        self._scorer = build_scorer(reward)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="reward")
    def score(self, batch: DataProto) -> DataProto:
        """Scores every row.

        Args:
            batch: ``responses`` [batch, response], ``response_lengths``, ``problem``, ``ground_truth`` and, for custom
                functions, ``extra``.

        Returns:
            ``rewards`` [batch] float32. The metadata count this replica's responses that score 0 without a verdict,
            ``reward/timeouts`` and ``reward/failures``, and for math ``reward/unboxed`` and
            ``reward/left_to_math_verify``.
        """
        extras = batch["extra"] if "extra" in batch else [{}] * len(batch)
        rows = zip(batch["problem"], self._texts(batch), batch["ground_truth"], extras, strict=True)
        scores = self._scorer.score(
            [
                Response(problem=str(problem), text=text, ground_truth=str(truth), extra=extra)
                for problem, text, truth, extra in rows
            ]
        )
        _log_first_failure(scores.grades)
        rewards = torch.tensor([grade.score for grade in scores.grades], dtype=torch.float32)
        return DataProto({"rewards": rewards}, meta=scores.counts)

    @dispatch(Dispatch.RANK_ZERO, layout="reward")
    def decode(self, batch: DataProto) -> list[str]:
        """The texts of ``responses``, without special tokens, for people to read."""
        return self._texts(batch)

    def close(self) -> None:
        """Ends the grader processes."""
        self._scorer.close()

    def _texts(self, batch: DataProto) -> list[str]:
        tokens = batch["responses"].tolist()
        lengths = batch["response_lengths"].tolist()
        real = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        # The tokenizer below transformers' own: twice as fast, and it leaves the spaces as they are.
        return self._tokenizer.backend_tokenizer.decode_batch(real, skip_special_tokens=True)


def _load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, use_fast=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path is '{model.path}', but its tokenizer cannot be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"model.path is '{model.path}', whose tokenizer is a {type(tokenizer).__name__}; a fast one is needed "
            f"(tokenizer.json beside the weights)"
        )
    return tokenizer


def _log_first_failure(grades: list[Grade]) -> None:
    failed = [grade for grade in grades if grade.status is not Status.SCORED]
    if failed:
        logger.warning(
            "%d of %d responses score 0 because they could not be scored; the first: %s (%s)",
            len(failed),
            len(grades),
            failed[0].detail,
            failed[0].status.value,
        )
