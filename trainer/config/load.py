"""Loads a recipe and overrides into one frozen, checked Config."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfpo_hybrid.errors import ConfigError, ModelError
from trainer.config.loss_knobs import fill_knobs
from trainer.config.merge import Draft, merge
from trainer.config.model import ModelFacts, find_model
from trainer.config.problem import Problem
from trainer.config.schema import Config
from trainer.config.sources import Source, read_overrides, read_recipe
from trainer.rules import ModelRule, Rule, find_problems


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A checked configuration and the model it names."""

    config: Config
    model: ModelFacts


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of a recipe with ``key=value`` overrides.

    Example: ``load_config("examples/quickstart/recipe.yaml", ["trainer.total_steps=2"])``.

    Raises:
        ConfigError: every mistake at once: unknown keys, wrong types, rules that do not hold, missing files.
    """
    return load_and_inspect(recipe, overrides).config


def load_and_inspect(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    known_models: bool = False,
    without: Container[Rule | ModelRule] = (),
) -> LoadedConfig:
    """As :func:`load_config`, with the model's shape.

    Args:
        recipe: a YAML file.
        overrides: ``key=value`` words; later ones win.
        known_models: the shape of a Qwen2.5 id that cannot be fetched may come from the built-in table.
        without: rules that need not hold, because nothing will be started.

    Raises:
        ConfigError: every mistake at once.
    """
    return _checked(*_read(recipe, overrides), known_models, without)


def load_sources(sources: Sequence[Source]) -> Config:
    """The checked configuration of settings from any places, later ones over earlier ones.

    Raises:
        ConfigError: every mistake at once.
    """
    return _checked(*_merged(sources), known_models=False).config


def read_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe's settings with keys, types and the loss's knobs checked, but no rules and no files.

    Raises:
        ConfigError: every mistake at once.
    """
    draft, problems = _read(recipe, overrides)
    _raise_all(draft, problems)
    return draft.value


def _read(recipe: str | Path, overrides: Sequence[str]) -> tuple[Draft[Config], list[Problem]]:
    """As :func:`_merged`, with the words that are no overrides among the mistakes."""
    sources, bad_words = read_overrides(overrides)
    draft, problems = _merged([read_recipe(recipe), *sources])
    return draft, [Problem((), word) for word in bad_words] + problems


def _merged(sources: Sequence[Source]) -> tuple[Draft[Config], list[Problem]]:
    """The settings as far as they make sense, and the mistakes in keys, types and knobs."""
    draft = merge(Config, sources, open_section="policy_loss", closed="policy_loss.knobs")
    problems = list(draft.problems)
    if draft.doubtful.isdisjoint({"policy_loss", "policy_loss.name", "policy_loss.plugins"}):
        section, found = fill_knobs(draft.value.policy_loss, draft.extras)
        draft.value = replace(draft.value, policy_loss=section)
        problems += found
    return draft, problems


def _checked(
    draft: Draft[Config], problems: Sequence[Problem], known_models: bool, without: Container[Rule | ModelRule] = ()
) -> LoadedConfig:
    model, found = _inspect(draft, known_models, without)
    _raise_all(draft, [*problems, *(problem for problem in found if draft.doubtful.isdisjoint(problem.keys))])
    assert model is not None, "a model that was not found is a problem"
    return LoadedConfig(draft.value, model)


def _inspect(
    draft: Draft[Config], known_models: bool, without: Container[Rule | ModelRule]
) -> tuple[ModelFacts | None, list[Problem]]:
    """The model, and every rule that does not hold."""
    config, problems, model = draft.value, [], None
    if "model.path" not in draft.doubtful:
        try:
            model = find_model(config.model, known_models=known_models)
        except ModelError as error:
            problems.append(Problem(("model.path",), f"model.path={config.model.path}: {error}"))
    return model, problems + find_problems(config, model.shape if model else None, without)


def _raise_all(draft: Draft[Config], problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigError([problem.located(draft.origins) for problem in problems])
