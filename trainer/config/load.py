"""From a recipe and overrides to a Config, with every mistake in keys, types and the knobs of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.losses import fill_knobs
from trainer.config.merge import Draft, merge
from trainer.config.model import ModelFacts
from trainer.config.problem import Problem
from trainer.config.schema import Config
from trainer.config.sources import Source, read_overrides, read_recipe

LOSS_KEYS = {"policy_loss", "policy_loss.name", "policy_loss.plugins"}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A checked configuration and the model it names."""

    config: Config
    model: ModelFacts


def read_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Draft[Config]:
    """The settings of a recipe with ``key=value`` overrides, later ones over earlier ones.

    Example: ``read_config("examples/quickstart/recipe.yaml", ["trainer.total_steps=2"]).checked()``.

    Raises:
        ConfigError: the recipe cannot be read; other mistakes are in the draft.
    """
    sources, bad_words = read_overrides(overrides)
    draft = merge_config([read_recipe(recipe), *sources])
    draft.problems += [Problem((), word) for word in bad_words]
    return draft


def merge_config(sources: Sequence[Source]) -> Draft[Config]:
    """The settings of any places, later ones over earlier ones, with every knob of the loss filled in."""
    draft = merge(Config, sources, open_section="policy_loss", closed="policy_loss.knobs")
    if draft.doubtful.isdisjoint(LOSS_KEYS):
        section, problems = fill_knobs(draft.value.policy_loss, draft.extras)
        draft.value = replace(draft.value, policy_loss=section)
        draft.problems += problems
    return draft
