"""What a rollout engine is to the workers: it generates, scores, takes new weights and sleeps.

Workers use nothing of an engine that is not in :class:`RolloutEngine`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import load_hf_config
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ShardSpec
from workers.tokenizer import read_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How one call of ``generate`` samples.

    Args:
        max_tokens: most new tokens of a response.
        temperature: divides the logits; log-probs are those at this temperature.
        top_p: keeps the smallest set of tokens with this probability. Below 1 (as with top_k) the log-probs are
            renormalised over the kept tokens and match no full softmax.
        top_k: keeps this many tokens; -1 keeps all.
        greedy: takes the likeliest token and ignores the three above.
        ignore_stop: goes on to ``max_tokens`` whatever is sampled (for benchmarks); otherwise the engine's stops hold.

    Raises:
        ConfigError: a value outside its range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    greedy: bool = False
    ignore_stop: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.max_tokens < 1:
            problems.append(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature <= 0:
            problems.append(f"temperature={self.temperature} must be above 0; use greedy for the likeliest token")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must be in (0, 1]")
        if self.top_k != -1 and self.top_k < 1:
            problems.append(f"top_k={self.top_k} must be -1 (all tokens) or at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """What ends a response before its limit. What was sampled last, a stop token included, belongs to the response.

    Args:
        token_ids: stop tokens, ascending.
        texts: a response ends with the token that completes one of them.
        beyond: stop tokens that the model's files name and its vocabulary lacks.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...] = ()
    beyond: tuple[int, ...] = ()


def find_stops(folder: Path, texts: Sequence[str] = ()) -> Stops:
    """The end-of-sequence tokens that config.json, generation_config.json or the tokenizer of a model names, all of them.

    Args:
        folder: of the model.
        texts: ``rollout.stop``. One that is a token of the tokenizer's own, such as ``<|im_end|>``, is a stop token.

    Raises:
        ModelError: a file is damaged, or has an ``eos_token_id`` that is none.
    """
    config, tokenizer = load_hf_config(str(folder)), read_tokenizer(folder)
    named = {*_eos_token_ids(folder / "config.json"), *_eos_token_ids(folder / "generation_config.json")}
    if tokenizer.eos_token_id is not None:
        named.add(tokenizer.eos_token_id)
    named |= {tokenizer.added[text] for text in texts if text in tokenizer.added}
    known = {token for token in named if token < config.get("vocab_size", math.inf)}
    return Stops(
        token_ids=tuple(sorted(known)),
        texts=tuple(dict.fromkeys(text for text in texts if text not in tokenizer.added)),
        beyond=tuple(sorted(named - known)),
    )


def _eos_token_ids(file: Path) -> set[int]:
    """One or several; null and negative numbers stand for none."""
    value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    tokens = [token for token in (value if isinstance(value, list) else [value]) if token is not None]
    wrong = [token for token in tokens if isinstance(token, bool) or not isinstance(token, int)]
    if wrong:
        raise ModelError(f"'{file}' has eos_token_id={value!r}; it must be a token id, or a list of them")
    return {token for token in tokens if token >= 0}


def generation_config(folder: Path, stops: Stops, *, temperature: float, top_p: float, top_k: int) -> str:
    """A generation_config.json that samples as training did, and stops at the same tokens.

    What the base model's authors advise besides, such as a repetition penalty, is for another distribution.

    Args:
        folder: of the base model, whose special tokens are kept.
        stops: of training.
        temperature: as in ``SamplingSettings``, like the two below.
        top_p: likewise.
        top_k: likewise.
    """
    file = folder / "generation_config.json"
    source = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    values = {key: source[key] for key in ("bos_token_id", "pad_token_id") if key in source} | {
        **({"eos_token_id": list(stops.token_ids)} if stops.token_ids else {}),
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": max(top_k, 0),  # transformers takes 50 where nothing is said, and 0 for all
    }
    return json.dumps(values, indent=2) + "\n"


class RolloutEngine(Protocol):
    """One rank of a generation engine. Methods are collective over the rank's rollout replica.

    To wake what is awake, or put to sleep what sleeps, does nothing.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        ...

    def generate(self, batch: DataProto, sampling: SamplingSettings, response_width: int) -> DataProto:
        """Samples one response a row.

        Args:
            batch: with ``prompts``, ``prompt_lengths`` and ``seeds``.
            sampling: for every row.
            response_width: width of the response columns; at least ``sampling.max_tokens``.

        Returns:
            ``responses``, ``response_lengths``, ``response_mask``, ``rollout_log_probs`` and ``truncated`` of each row.
        """
        ...

    def score(self, sequences: list[list[int]]) -> list[Tensor]:
        """Log-probs in nats of tokens 1, 2, ... of each sequence given those before, at temperature 1."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """The live local parameters by the engine's names; writing into them changes the model."""
        ...

    def specs(self) -> list[ShardSpec]:
        """What each local parameter holds."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes full tensors under their Hugging Face names through the engine's own loader."""
        ...

    def finish_update(self) -> None:
        """Forgets whatever the old weights computed; due after every change of weights."""
        ...

    def sleep(self) -> None:
        """Gives weights and KV cache back to the device; the weights are lost."""
        ...

    def sleep_kv_cache(self) -> None:
        """Gives only the KV cache back to the device; the weights stay."""
        ...

    def wake_weights(self) -> None:
        """Takes memory for the weights again; their contents are undefined until they are written."""
        ...

    def wake_kv_cache(self) -> None:
        """Takes memory for the KV cache again."""
        ...

    def close(self) -> None:
        """Frees everything; the engine cannot be used after it."""
        ...
