"""Problems become tokenised prompts, and those of training batches, in a seeded order without end."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.protocol import DataProto
from trainer.config import Config, DataConfig
from trainer.config.model import whole_model
from trainer.data.chat import RENDER_ERRORS, ChatTemplate, prompt_warnings, refused_chat, template_source
from trainer.data.columns import value_at
from trainer.data.order import (
    TRAINING,
    EpochByEpoch,
    PromptOrder,
    Widening,
    level_ranks,
    stable_hash,
)
from trainer.data.records import Message, Record, read_records
from workers.config import ModelConfig, RolloutConfig
from workers.tokenizer import DEFAULT_TEMPLATE, check_vocabulary, open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NORMALISED = 4
"""Characters of a text that a tokenizer may make one of, before it looks for tokens."""


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts with their records, none longer than allowed.

    Args:
        records: one a prompt.
        tokens: the token ids of each prompt.
        too_long: the records whose prompts were too long and have been left out, or cut.
    """

    records: list[Record]
    tokens: list[list[int]]
    too_long: list[Record]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def overlong(self) -> int:
        """How many prompts were too long."""
        return len(self.too_long)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, ``[len(self)]``."""
        return np.fromiter(map(len, self.tokens), dtype=np.int64, count=len(self.tokens))

    def batch(self, chosen: NDArray[np.int64], group_ids: NDArray[np.int64], seeds: NDArray[np.int64]) -> DataProto:
        """Rows of the chosen prompts, each repeated once a sample in succession.

        Args:
            chosen: indices of prompts, ``[prompts]``.
            group_ids: the number each of them goes by, ``[prompts]``.
            seeds: of each response, ``[prompts, samples]``.
        """
        prompts, samples = seeds.shape
        lengths = self.lengths[chosen]
        padded = np.zeros((prompts, int(lengths.max())), dtype=np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([self.tokens[i] for i in chosen])
        records = [self.records[i] for i in chosen for _ in range(samples)]
        return DataProto(
            {
                "prompts": torch.from_numpy(padded.repeat(samples, axis=0)),
                "prompt_lengths": torch.from_numpy(lengths.repeat(samples)),
                "group_ids": torch.from_numpy(group_ids.repeat(samples)),
                "sample_ids": torch.arange(samples).repeat(prompts),
                "seeds": torch.from_numpy(seeds.reshape(-1)),
                "problem": [record.problem for record in records],
                "ground_truth": [record.ground_truth for record in records],
                "extra": [record.extra for record in records],
            }
        )


def run_tokenizer(model: ModelConfig, data: DataConfig, rollout: RolloutConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model whose files are whole; warns of what is probably not meant with it.

    Args:
        model: fetched, where it is an id.
        data: how prompts are made.
        rollout: where responses stop.

    Raises:
        UserError: the model's files cannot be used, or its tokenizer cannot be loaded, or cannot make prompts.
    """
    folder = whole_model(model)
    tokenizer = open_tokenizer(model)
    check_vocabulary(tokenizer.get_vocab(), model_shape(load_hf_config(str(folder))).vocab_size, folder)
    if not model.trust_remote_code:
        for warning in prompt_warnings(folder, data, rollout.stop):
            logger.warning("%s", warning)
    return tokenizer


def encode_chats(
    tokenizer: "PreTrainedTokenizerBase", chats: Sequence[list[Message]], config: DataConfig
) -> list[list[int]]:
    """The token ids of each chat, which the assistant answers next.

    Args:
        tokenizer: with a chat template, unless ``config`` brings one.
        chats: whole, each ends with a user's message.
        config: of the chat template.

    Raises:
        DataError: no chat template, or one that refuses the chat or lacks an argument that is set.
    """
    chat_templates = tokenizer.chat_template or {}
    source = template_source(
        config,
        chat_templates if isinstance(chat_templates, dict) else {DEFAULT_TEMPLATE: chat_templates},
        tokenizer=tokenizer.name_or_path,
        adds_bos=_adds_bos(tokenizer),
    )
    ChatTemplate(source, config, tokenizer.special_tokens_map)  # refuses arguments that do nothing
    told = config.chat_template_kwargs
    try:
        texts = tokenizer.apply_chat_template(
            list(chats), chat_template=source, add_generation_prompt=True, tokenize=False, **told
        )
    except RENDER_ERRORS as error:
        raise refused_chat(config, error) from error
    longest = longest_text(tokenizer, config.max_prompt_length)
    ends = [str(text)[-longest:] for text in texts]
    return tokenizer(ends, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def longest_text(tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> int:
    """Characters that are over ``max_tokens`` tokens for certain; of a longer text so many at its end tell that it is.

    A token stands for no more characters than it has, and a tokenizer may compose or drop some before (NFC makes one of
    up to three), so this is a margin over the longest token. Without it, a text of 18 MB takes gigabytes.
    """
    longest_token = max(map(len, tokenizer.get_vocab()), default=1)
    return NORMALISED * longest_token * (max_tokens + 1)


def load_prompts(
    files: Sequence[str],
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    left_out: str = "were left out",
) -> PromptSet:
    """Reads, encodes, and filters or cuts; over-long prompts are kept apart and logged.

    Cutting keeps a prompt's last tokens, so that it still ends where the assistant begins.

    Args:
        files: of problems, joined.
        config: columns, chat and lengths.
        tokenizer: of the model.
        limit: only the first so many problems.
        left_out: what a user is told of prompts that are filtered.

    Raises:
        DataError: files that cannot be used, or no prompt short enough.
    """
    records = read_records(files, config, limit)
    tokens = encode_chats(tokenizer, [record.messages for record in records], config)
    longest = config.max_prompt_length
    fits = [len(ids) <= longest for ids in tokens]
    too_long = [record for record, short in zip(records, fits, strict=True) if not short]
    if config.overlong == "cut":
        tokens = [ids[-longest:] for ids in tokens]
    else:
        records = [record for record, short in zip(records, fits, strict=True) if short]
        tokens = [ids for ids in tokens if len(ids) <= longest]
    if too_long:
        done = "were cut" if config.overlong == "cut" else left_out
        logger.warning("%d of %d prompts are over %d tokens and %s", len(too_long), len(fits), longest, done)
    if not records:
        raise DataError(
            f"all {len(too_long)} prompts of {', '.join(files)} are over data.max_prompt_length={longest} tokens (chat "
            "template, system prompt and examples included); raise it, or set data.overlong=cut"
        )
    return PromptSet(records, tokens, too_long)


class TrainPrompts:
    """Training prompts, an endless walk over the files.

    What is drawn is a pure function of the files, the settings and the number of prompts drawn before; that number is
    all a restart needs.

    Args:
        config: of the run.
        tokenizer: of its model.

    Raises:
        DataError: files that cannot be used, or fewer prompts than a batch needs.
    """

    def __init__(self, config: Config, tokenizer: "PreTrainedTokenizerBase") -> None:
        data = config.data
        self.prompts = load_prompts(data.train_files, data, tokenizer)
        self.group_size, self._seed = config.rollout.group_size, config.trainer.seed
        if len(self.prompts) < data.train_batch_size:
            left_out = self.prompts.overlong if data.overlong == "filter" else 0
            too_long = f" ({left_out} were over data.max_prompt_length={data.max_prompt_length})" if left_out else ""
            raise DataError(
                f"data.train_files have {len(self.prompts)} prompts{too_long}, fewer than one batch of "
                f"data.train_batch_size={data.train_batch_size}; add files or take a smaller batch"
            )
        self._order = _order_of(self.prompts, data, self._seed if data.shuffle else None)

    def draw(self, position: int, count: int, *, step: int, first_group: int = 0) -> DataProto:
        """The next prompts, each ``group_size`` times in succession.

        Args:
            position: prompts drawn before, over the whole run.
            count: prompts wanted.
            step: rollout step, counted from 0; sampling seeds come from it and from the number of the group.
            first_group: number of the first group, where the step has drawn before.
        """
        groups = first_group + np.arange(count)
        seeds = stable_hash(TRAINING, self._seed, step, groups[:, None], np.arange(self.group_size))
        return self.prompts.batch(self._order.at(position, count), groups, seeds)


def _order_of(prompts: PromptSet, data: DataConfig, seed: int | None) -> PromptOrder:
    if data.curriculum == "none":
        return EpochByEpoch(len(prompts), seed)
    levels = level_ranks((value_at(record.extra, data.level_key) for record in prompts.records), data.level_key)
    if data.curriculum == "order":
        return EpochByEpoch(len(prompts), seed, levels)
    easiest = int((levels == 0).sum())
    if easiest < data.train_batch_size:
        raise DataError(
            f"data.curriculum=widen begins with the {easiest} prompts of the easiest level, fewer than one batch of "
            f"data.train_batch_size={data.train_batch_size}; take a smaller batch, or data.curriculum=order"
        )
    return Widening(levels, seed, data.curriculum_steps * data.train_batch_size)


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]  # pyright: ignore[reportIndexIssue]
