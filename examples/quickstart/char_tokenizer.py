"""A Hugging Face tokenizer with one token a character: Qwen2's own byte-level one without any merges.

Qwen2's class, because ``AutoTokenizer`` takes it for every model of that type, whatever the tokenizer's files say.
A character outside ASCII becomes one token a byte.
"""

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

SPECIAL_TOKENS = PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|unknown|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
"""Their ids are their places; a role costs one token, not its letters."""
PAD_ID, END_ID = SPECIAL_TOKENS.index(PAD), SPECIAL_TOKENS.index(END)

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_char_tokenizer(max_positions: int) -> Qwen2Tokenizer:
    """The tokenizer: six special tokens and the 256 bytes.

    Args:
        max_positions: the longest sequence of its model.
    """
    return Qwen2Tokenizer(
        vocab={
            token: index for index, token in enumerate([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
        },
        merges=[],
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )
