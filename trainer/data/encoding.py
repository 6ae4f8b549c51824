"""Problems to prompt tokens: the tokenizer, its chat template and the system prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from cfpo_hybrid.errors import DataError, ModelError
from trainer.config.data_config import DataConfig
from trainer.data.sources import Problem
from workers.config import ModelConfig

PLAIN = "plain"


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's fast tokenizer.

    Raises:
        ModelError: there is none, or it needs code of its own and ``model.trust_remote_code`` is off.
    """
    try:
        return AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, use_fast=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of model.path='{model.path}' cannot be loaded: {error}") from error


class PromptEncoder:
    """Turns problems into prompt tokens.

    Args:
        tokenizer: of the model.
        config: chat template and system prompt.

    Raises:
        DataError: the tokenizer has no chat template and none is configured.
    """

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        self._tokenizer, self._system_prompt = tokenizer, config.system_prompt
        self._plain = config.chat_template == PLAIN
        self._template = None if self._plain else _template(tokenizer, config.chat_template)

    def encode(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of each prompt, ready for the model to answer."""
        texts = [self._text(problem.text) for problem in problems]
        return self._tokenizer(texts, add_special_tokens=self._plain)["input_ids"]

    def _text(self, problem: str) -> str:
        if self._plain:
            return f"{self._system_prompt}\n\n{problem}\n" if self._system_prompt else f"{problem}\n"
        system = [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []
        return self._tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": problem}],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )


def _template(tokenizer: Any, configured: str | None) -> str:
    if configured is not None:
        file = Path(configured)
        if not file.is_file():
            raise DataError(f"data.chat_template='{configured}' is no file; name a Jinja file or '{PLAIN}'")
        return file.read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; set data.chat_template to a Jinja file, or "
            f"to '{PLAIN}' for the bare text"
        )
    return tokenizer.chat_template
