"""A model's tokenizer: opened with transformers, or read from its files alone, which takes no seconds of imports."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfpo_hybrid.errors import ModelError
from workers.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORE, SETTINGS, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
CHAT_TEMPLATE, TEMPLATES_FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT_TEMPLATE = "default"


def open_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerFast":
    """The tokenizer of a Hugging Face id or folder.

    Raises:
        ModelError: there is none, it cannot be loaded, or it is not a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # of transformers, of tokenizers, or of code that is shipped with the model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model.path={model.path} has no tokenizer that can be loaded: {reason[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"model.path={model.path} has a {type(tokenizer).__name__}; a fast tokenizer is needed ({CORE} beside the "
            "weights): save one with AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)"
        )
    return tokenizer


def check_vocabulary(vocabulary: Mapping[str, int], vocab_size: int, source: str | Path) -> None:
    """Refuses a tokenizer that can write tokens which the embedding lacks; a larger embedding is usual.

    Args:
        vocabulary: id of each token.
        vocab_size: rows of the embedding, as config.json says.
        source: of the tokenizer.

    Raises:
        ModelError: a token id is not below ``vocab_size``.
    """
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= vocab_size)
    if beyond:
        (first, token), last = beyond[0], beyond[-1][0]
        raise ModelError(
            f"the tokenizer in '{source}' has token ids up to {last}, but the embedding has {vocab_size} rows (vocab_size "
            f"in config.json), so the first token without a row is {token!r} with id {first} ({len(beyond)} in all); take "
            f"the tokenizer that belongs to the model, or resize the embedding to at least {last + 1} rows "
            "(resize_token_embeddings in transformers) and save the model"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFiles:
    """What the files of a tokenizer say; empty where there are none.

    Args:
        folder: where they are.
        vocabulary: id of each token.
        added: the tokens that no text is cut into but by their own name, e.g. ``<|im_end|>``.
        special_tokens: by role, e.g. ``eos_token``.
        adds_bos: whether a plain text gets the BOS token before it.
        chat_templates: by name; a single one is called "default".
    """

    folder: Path
    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    special_tokens: Mapping[str, str]
    adds_bos: bool
    chat_templates: Mapping[str, str]

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text; None where the tokenizer names none."""
        return self.vocabulary.get(self.special_tokens.get("eos_token", ""))


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Reads tokenizer.json, tokenizer_config.json and the chat templates of a folder.

    Raises:
        ModelError: a file is damaged.
    """
    core, settings = _read_object(folder / CORE), _read_object(folder / SETTINGS)
    special = _special_tokens(_read_object(folder / SPECIAL_TOKENS)) | _special_tokens(settings)
    try:
        added = {token["content"]: int(token["id"]) for token in core.get("added_tokens") or []}
        added |= {token["content"]: int(key) for key, token in (settings.get("added_tokens_decoder") or {}).items()}
        words = (core.get("model") or {}).get("vocab") or {}
        in_order = words if isinstance(words, Mapping) else {entry[0]: place for place, entry in enumerate(words)}
        vocabulary = {token: int(number) for token, number in in_order.items()} | added
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"'{folder}' has no tokenizer that can be loaded: {type(error).__name__}: {error}") from None
    return TokenizerFiles(
        folder=folder,
        vocabulary=vocabulary,
        added=added,
        special_tokens=special,
        adds_bos=_adds_bos(folder / CORE, settings, vocabulary.get(special.get("bos_token", ""))),
        chat_templates=_chat_templates(folder, settings.get("chat_template")),
    )


def _adds_bos(core: Path, settings: Mapping[str, Any], bos: int | None) -> bool:
    stated = settings.get("add_bos_token")
    if bos is None or isinstance(stated, bool) or not core.is_file():
        return bos is not None and stated is True
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(core)).encode("x").ids[:1] == [bos]
    except Exception as error:  # tokenizers raises no narrower one
        raise ModelError(f"'{core}' is no tokenizer that can be loaded: {error}") from None


def _chat_templates(folder: Path, stated: Any) -> dict[str, str]:
    """Those of tokenizer_config.json, one or several by name, and over them those in files of their own."""
    templates: dict[str, str] = {}
    if isinstance(stated, str):
        templates[DEFAULT_TEMPLATE] = stated
    elif isinstance(stated, list):
        templates |= {str(each["name"]): str(each["template"]) for each in stated}
    try:
        for file in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja")):
            templates[file.stem] = file.read_text(encoding="utf-8")
        if (folder / CHAT_TEMPLATE).is_file():
            templates[DEFAULT_TEMPLATE] = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"a chat template in '{folder}' cannot be read: {error}") from None
    return templates


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The text of each special token by its role; written as a text, or as an object with one."""
    found = {}
    for role, token in settings.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if role.endswith("_token") and isinstance(text, str):
            found[role] = text
    return found


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ModelError: the file holds something else.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"'{file}' is damaged or cut short ({error}); fetch or copy the model anew") from None
    if not isinstance(value, dict):
        raise ModelError(f"'{file}' holds a {type(value).__name__}, not an object; fetch or copy the model anew")
    return value
