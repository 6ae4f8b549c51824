"""A character tokenizer and data files of a few rows, for tests of the data stage."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.config import Config, DataConfig, TrainerConfig
from workers.config import RolloutConfig

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
"""A system message s and a problem p become ``s:...;u:...;a:``, five characters more than p alone."""


def char_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", *string.printable[:95]])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", chat_template=template)


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered_rows(count: int) -> list[dict[str, Any]]:
    """Problems p0, p1, ... with the columns of the MATH data set."""
    return [
        {"problem": f"p{n}", "solution": f"So \\boxed{{{n}}}.", "level": f"Level {n % 5 + 1}", "type": "Algebra"}
        for n in range(count)
    ]


def run_config(data: DataConfig, *, group_size: int = 2, seed: int = 7, val_samples: int = 1) -> Config:
    return Config(
        data=data,
        rollout=RolloutConfig(group_size=group_size),
        trainer=TrainerConfig(seed=seed, val_samples=val_samples),
    )
