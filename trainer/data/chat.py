"""Problems become token ids, through the tokenizer's chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfpo_hybrid.errors import DataError, ModelError
from trainer.config.data_config import DataConfig
from workers.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face id or folder.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer  # seconds to import; the configuration check does without

    try:
        return AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model.path={model.path} has no tokenizer that can be loaded: {reason[0]}") from error


def encode_problems(
    tokenizer: "PreTrainedTokenizerBase", problems: Sequence[str], config: DataConfig
) -> list[list[int]]:
    """The token ids of each problem as a chat that the assistant answers next.

    Args:
        tokenizer: with a chat template, unless ``config`` brings one.
        problems: questions, each the user's message.
        config: of the system prompt and the chat template.

    Raises:
        DataError: no chat template, or one that refuses the chat.
    """
    from jinja2 import TemplateError

    template = _template(config)
    if template is None and not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} has no chat template; name a Jinja file in data.chat_template, "
            "e.g. one with the line {{ messages[-1].content }}"
        )
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    chats = [[*system, {"role": "user", "content": problem}] for problem in problems]
    try:
        texts = tokenizer.apply_chat_template(chats, chat_template=template, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise DataError(f"the chat template cannot render a prompt{_with_system(config)}: {error}") from error
    return tokenizer([str(text) for text in texts], add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _template(config: DataConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template={config.chat_template} cannot be read: {error}") from error


def _with_system(config: DataConfig) -> str:
    return " with a system message (data.system_prompt)" if config.system_prompt else ""
