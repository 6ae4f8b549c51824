"""The reward worker, step 3 of the way of a batch: turns response tokens into text and text into rewards."""

import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.schema import GivenColumn
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.config import ModelConfig, RewardConfig
from workers.reward.scorers import Response, RewardSum
from workers.tokenizer import open_tokenizer


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
        self._tokenizer = open_tokenizer(model)
        self._config = reward
        self._rewards = RewardSum(reward)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="reward")
    def score(self, batch: DataProto) -> DataProto:
        """Scores every row.

        Args:
            batch: ``responses`` [batch, response], ``response_lengths``, ``problem``, ``ground_truth`` and, for custom
                functions, ``extra``.

        Returns:
            ``rewards`` [batch] float32, NaN where no reward has an opinion, and where the reward is a verdict ``verdicts``
            [batch] float32, 1 for right; ``reward_parts`` where there are several rewards or functions.
            The metadata have ``counts`` of responses (``reward/timeouts``,
            ``reward/failures``, of math ``reward/unboxed`` and ``reward/left_to_math_verify``, of functions
            ``reward/no_opinion`` and ``reward/clipped``), ``means`` as [sum, count], and of functions ``failures``
            as [calls, failed calls, the first failure] and ``clipped`` as [calls, rewards beyond bounds, the first].
        """
        extras = batch["extra"] if "extra" in batch else [{}] * len(batch)
        marked = self._texts(batch, special_tokens=True) if self._config.special_tokens else [None] * len(batch)
        rows = zip(batch["problem"], self._texts(batch), batch["ground_truth"], extras, marked, strict=True)
        scored = self._rewards.score(
            [
                Response(problem=str(problem), text=text, ground_truth=str(truth), extra=extra, marked_text=marked_text)
                for problem, text, truth, extra, marked_text in rows
            ]
        )
        columns: dict[str, GivenColumn] = {"rewards": torch.tensor(scored.totals, dtype=torch.float32)}
        if self._config.names != ["math"]:  # which has no parts
            columns["reward_parts"] = scored.parts
        if self._config.right_from is not None:
            firsts = torch.tensor(scored.firsts, dtype=torch.float32)
            columns["verdicts"] = torch.where(firsts.isnan(), firsts, (firsts >= self._config.right_from).float())
        means = {name: list(pair) for name, pair in scored.means.items()}
        failures = {label: list(found) for label, found in scored.failures.items()}
        clipped = {label: list(found) for label, found in scored.clipped.items()}
        meta = {"counts": dict(scored.counts), "means": means, "failures": failures, "clipped": clipped}
        return DataProto(columns, meta=meta)

    @dispatch(Dispatch.RANK_ZERO, layout="reward")
    def decode(self, batch: DataProto, special_tokens: bool = False) -> list[str]:
        """The texts of ``responses``, with special tokens where they are asked for, for people to read."""
        return self._texts(batch, special_tokens=special_tokens)

    def close(self) -> None:
        """Ends the grader processes."""
        self._rewards.close()

    def _texts(self, batch: DataProto, *, special_tokens: bool = False) -> list[str]:
        tokens = batch["responses"].tolist()
        lengths = batch["response_lengths"].tolist()
        real = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        # The tokenizer below transformers' own: twice as fast, and it leaves the spaces as they are.
        return self._tokenizer.backend_tokenizer.decode_batch(real, skip_special_tokens=not special_tokens)
