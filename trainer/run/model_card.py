"""What an exported model says of itself: its card, and the chat template that training used."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.config import Config, resolved
from trainer.config.paths import recorded
from trainer.config.problem import count
from trainer.config.sources import settings_text
from workers.megatron.hf_companions import MODEL_CARD
from workers.tokenizer import CHAT_TEMPLATE

FIGURES = re.compile(r"reward/mean|val/(?:[^/]+/)?(?:accuracy|reward|pass@\d+|maj@\d+|truncated_share|overlong)")
"""Names of the metrics that a card shows, those of sources left out."""


RECIPE = "recipe.yaml"
"""File of an export: the settings of its run, which `cfpo eval` takes up."""


def export_texts(config: Config, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The files of an export that are this run's and not the base model's, by name.

    Args:
        config: of the run.
        metrics: the lines of ``metrics.jsonl`` up to the weights that are exported.
    """
    texts = {MODEL_CARD: model_card(config, metrics), RECIPE: settings_text(recorded(config))}
    if config.data.chat_template is not None:
        texts[CHAT_TEMPLATE] = Path(config.data.chat_template).read_text(encoding="utf-8")
    return texts


def model_card(config: Config, metrics: Sequence[Mapping[str, Any]]) -> str:
    """The README.md of the exported model: base model, figures and the whole recipe."""
    base, revision = config.model.path, config.model.revision
    is_folder = Path(base).expanduser().is_dir()
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["reinforcement-learning"]}
    if not is_folder:
        front["base_model"] = base
    steps = max((line["step"] for line in metrics), default=0)
    name = f"the model in `{base}`" if is_folder else f"[{base}](https://huggingface.co/{base})"
    version = f" at revision `{revision}`" if revision else ""
    parts = [
        f"---\n{_yaml(front)}---",
        f"# {Path(base).name} after {count(steps, 'step')} of {config.policy_loss.name}",
        f"Trained from {name}{version} with cfpo_hybrid: {count(steps, 'rollout step')}, policy loss "
        f"`{config.policy_loss.name}`, advantage `{config.algorithm.advantage}`, reward `{config.reward.name}`.",
        "## Figures",
        _figures(metrics),
        "## How it was prompted",
        "The chat template of this folder is the one that training used. "
        + (
            f"Each prompt began with this system message:\n\n{_block(config.data.system_prompt)}"
            if config.data.system_prompt
            else "There was no system message."
        )
        + _told(config),
        "## Recipe",
        _block(settings_text(resolved(config)), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _told(config: Config) -> str:
    """What no file of the export says: arguments of the template, and texts that ended a response."""
    said = ""
    if config.data.chat_template_kwargs:
        said += f"\n\nThe template was told:\n\n{_block(_yaml(config.data.chat_template_kwargs), 'yaml')}"
    if config.rollout.stop:
        texts = _block("\n".join(json.dumps(text, ensure_ascii=False) for text in config.rollout.stop))
        said += f"\n\nThese texts, too, ended a response:\n\n{texts}"
    return said


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    """First and last value of each figure."""
    names = sorted({name for line in metrics for name in line if FIGURES.fullmatch(name)})
    rows = []
    for name in names:
        values = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        if values:
            (first_step, first), (last_step, last) = values[0], values[-1]
            rows.append(f"| `{name}` | {first:.4g} (step {first_step}) | {last:.4g} (step {last_step}) |")
    if not rows:
        return "None were measured."
    return "\n".join(["| | first | last |", "|---|---|---|", *rows])


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _block(text: str, language: str = "") -> str:
    """A code block whose fence no line of the text ends."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
