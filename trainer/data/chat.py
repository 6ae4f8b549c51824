"""The chat template of a run: what it is told besides the chat, and what is odd about the prompts that come of it.

A prompt is exactly what the template renders, with the header of the assistant's turn; no token is added. So an exported
model is prompted as it was trained, by whoever applies its template.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from workers.rollout.engine import Stops, find_stops
from workers.tokenizer import DEFAULT_TEMPLATE, TokenizerFiles, read_tokenizer

OWN_ARGUMENTS = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""What transformers' ``apply_chat_template`` takes itself."""

RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a template may raise."""

QUESTION, ANSWER = "1+1?", "42"
"""Of the chat that a template is tried with."""


class ChatTemplate:
    """A chat template in Jinja, rendered as transformers does.

    Args:
        source: its text.
        config: of the system prompt and of the template's arguments.
        special_tokens: by role, which templates may name.

    Raises:
        DataError: it is no Jinja, or never mentions one of the arguments.
    """

    def __init__(self, source: str, config: DataConfig, special_tokens: Mapping[str, str]) -> None:
        self._config, self._special_tokens = config, special_tokens
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template is no Jinja: {error} (line {error.lineno})") from error
        _check_arguments(config.chat_template_kwargs, names)

    def prompt(self, *, header: bool = True, answer: str | None = None) -> str:
        """A chat of the system prompt, the examples and a small question.

        Args:
            header: end with the header of the assistant's turn.
            answer: the assistant's turn, if there is one.

        Raises:
            DataError: the template refuses the chat.
        """
        system = self._config.system_prompt
        chat = [{"role": "system", "content": system}] if system else []
        chat += [*(self._config.examples or []), {"role": "user", "content": QUESTION}]
        if answer is not None:
            chat.append({"role": "assistant", "content": answer})
        told = {**self._special_tokens, **self._config.chat_template_kwargs}
        try:
            return self._template.render(
                messages=chat, tools=None, documents=None, add_generation_prompt=header, **told
            )
        except RENDER_ERRORS as error:
            raise refused_chat(self._config, error) from error


def refused_chat(config: DataConfig, error: Exception) -> DataError:
    """What is said of a template that raises."""
    of_system = " with a system message (data.system_prompt)" if config.system_prompt else ""
    return DataError(f"the chat template cannot render a prompt{of_system}: {error}")


def template_source(config: DataConfig, templates: Mapping[str, str], *, tokenizer: str | Path, adds_bos: bool) -> str:
    """The text of ``data.chat_template``, or else of the tokenizer's own.

    Args:
        config: names a file, or none.
        templates: the tokenizer's, by name.
        tokenizer: its name, for messages.
        adds_bos: whether it puts its BOS token before a plain text.

    Raises:
        DataError: there is none, or the file cannot be read.
    """
    if config.chat_template is not None:
        try:
            return Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.chat_template={config.chat_template} cannot be read: {error}") from error
    if DEFAULT_TEMPLATE in templates:
        return templates[DEFAULT_TEMPLATE]
    own = f"only chat templates for {', '.join(sorted(templates))}" if templates else "no chat template"
    bos = "{{ bos_token }}" if adds_bos else ""
    raise DataError(
        f"the tokenizer {tokenizer} has {own}; name a Jinja file in data.chat_template, "
        f"e.g. one with the line {bos}{{{{ messages[-1].content }}}}"
    )


def chat_template(config: DataConfig, files: TokenizerFiles) -> ChatTemplate:
    """The template of a run.

    Raises:
        DataError: there is none, it cannot be read or used, or it refuses a small chat.
    """
    source = template_source(config, files.chat_templates, tokenizer=files.folder, adds_bos=files.adds_bos)
    template = ChatTemplate(source, config, files.special_tokens)
    template.prompt()
    return template


def prompt_warnings(folder: Path, config: DataConfig, stop: Sequence[str]) -> list[str]:
    """What is probably not meant: of how prompts begin and end, and of what ends a response.

    Args:
        folder: of the model.
        config: of the prompts.
        stop: ``rollout.stop``.

    Raises:
        UserError: files that cannot be used.
    """
    files, stops = read_tokenizer(folder), find_stops(folder, stop)
    template = chat_template(config, files)
    return [*_of_stops(stops), *_of_bos(template, files), *_of_turns(template, files, stops, stop)]


def _of_stops(stops: Stops) -> Iterator[str]:
    if stops.beyond:
        numbers = ", ".join(map(str, stops.beyond))
        yield f"end-of-sequence token {numbers} lies beyond the vocabulary of the model; no response will end with it"
    if not stops.token_ids and not stops.texts:
        yield (
            "no response will end before data.max_response_length: neither config.json nor generation_config.json nor the "
            "tokenizer names an end-of-sequence token that the model has; add eos_token_id to config.json, or name a text "
            "in rollout.stop"
        )


def _of_bos(template: ChatTemplate, files: TokenizerFiles) -> Iterator[str]:
    bos, prompt = files.special_tokens.get("bos_token"), template.prompt()
    if bos and files.adds_bos and not prompt.startswith(bos):
        yield (
            f"prompts begin without {bos}, which the tokenizer puts before a plain text: the chat template does not write "
            "it, and nothing is added to what a template renders; if the model was trained with it, begin the template "
            "with {{ bos_token }} (data.chat_template)"
        )
    if bos and prompt.startswith(2 * bos):
        yield f"prompts begin with {bos} twice: the chat template writes it twice (data.chat_template)"


def _of_turns(template: ChatTemplate, files: TokenizerFiles, stops: Stops, stop: Sequence[str]) -> Iterator[str]:
    """Looks at a chat with an answer: how the template begins and ends the assistant's turn."""
    try:
        before, whole = template.prompt(header=False), template.prompt(header=False, answer=ANSWER)
    except DataError:
        return
    start = whole.rfind(ANSWER)
    if start < 0:
        return
    header = whole[len(before) : start].strip() if whole.startswith(before) else ""
    if header and template.prompt() == before:
        yield (
            f"prompts end without {header}, with which the chat template begins an answer: it ignores "
            "add_generation_prompt, so the model has to write it first; add it to the template (data.chat_template)"
        )
    rest = whole[start + len(ANSWER) :].lstrip()
    ends = max((token for token in files.added if rest.startswith(token)), key=len, default=None)
    if ends is not None and files.added[ends] not in stops.token_ids and ends not in stops.texts:
        named = ", ".join(token for token, number in files.vocabulary.items() if number in stops.token_ids)
        yield (
            f"responses do not end at {ends} ({files.added[ends]}), with which the chat template ends an answer: config.json, "
            f"generation_config.json and the tokenizer name {named or 'nothing'}; to end there too: "
            f"rollout.stop={json.dumps([*stop, ends])}"
        )


def _check_arguments(arguments: Mapping[str, Any], names: set[str]) -> None:
    key = "data.chat_template_kwargs"
    for name in arguments:
        if name in OWN_ARGUMENTS:
            raise DataError(
                f"{key}.{name} cannot be set: prompts are rendered with a {name} of their own; leave it out"
            )
    wrong = sorted(arguments.keys() - names)
    if wrong:
        others = ", ".join(sorted(names - OWN_ARGUMENTS)) or "none"
        raise DataError(
            f"{key}.{wrong[0]} does nothing: the chat template has no variable of that name; it has: {others}"
        )


class _Generation(Extension):
    """The tag around what the assistant says, which training on whole chats looks for: here it changes nothing."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
