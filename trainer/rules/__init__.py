"""From a recipe to a configuration that obeys every rule: all mistakes at once, each with the legal values nearby.

A rule is a function from the config (and the model's shape, where it needs one) to the problems it finds. To add one,
write it into the file of its subject and name it in that file's table.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape
from trainer.config import Config
from trainer.config.losses import fill_knobs, knobs_as_written
from trainer.config.merge import Draft, merge
from trainer.config.model import LoadedConfig, find_model
from trainer.config.paths import with_home
from trainer.config.problem import Problem
from trainer.config.sources import Source, read_overrides, read_recipe
from trainer.rules import algorithm, batch, layout, machine, off_policy, values
from trainer.run.directory import RunDirectory

Rule = Callable[[Config], Iterable[Problem]]
ModelRule = Callable[[Config, ModelShape], Iterable[Problem]]

RULES: tuple[Rule, ...] = (
    *values.RULES,
    *algorithm.RULES,
    *off_policy.RULES,
    *layout.RULES,
    *batch.RULES,
    *machine.RULES,
    *machine.FILE_RULES,
)
MODEL_RULES: tuple[ModelRule, ...] = (
    *layout.MODEL_RULES,
    *batch.MODEL_RULES,
    *machine.MODEL_RULES,
    *machine.MODEL_FILE_RULES,
)

BELONGINGS = {"algorithm.advantage": "algorithm.advantage_knobs", "reward.name": "reward.pass_threshold"}
"""Settings that hold for one value of another alone, and are dropped where a later source sets another value."""

LOSS_KEYS = {"policy_loss", "policy_loss.name", "policy_loss.plugins"}


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
    return _checked(read_config(recipe, overrides), known_models, without)


def load_sources(sources: Sequence[Source]) -> Config:
    """The checked configuration of settings from any places, later ones over earlier ones.

    Raises:
        ConfigError: every mistake at once.
    """
    return _checked(merge_config(sources)).config


def check_evaluation(draft: Draft[Config]) -> LoadedConfig:
    """A configuration that generates and scores; what it says of training are defaults, which every rule lets pass.

    Raises:
        ConfigError: every mistake at once.
    """
    draft.problems += machine.evaluation_files(draft.value)
    return _checked(draft, without={machine.data_files})


def read_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Draft[Config]:
    """The settings of a recipe with ``key=value`` overrides, later ones over earlier ones.

    Example: ``read_config("examples/quickstart/recipe.yaml", ["trainer.total_steps=2"]).checked()``.

    Raises:
        ConfigError: the recipe cannot be read; other mistakes are in the draft.
    """
    sources, bad_words = read_overrides(overrides)
    draft = merge_config([read_recipe(recipe), *sources])
    draft.problems += [Problem((), word) for word in bad_words]
    draft.problems += _moved_run(Path(recipe), draft.value)
    return draft


def merge_config(sources: Sequence[Source]) -> Draft[Config]:
    """The settings of any places, later ones over earlier ones, with every knob of the loss filled in."""
    draft = merge(Config, sources, open_section="policy_loss", closed="policy_loss.knobs", belongings=BELONGINGS)
    draft.value = with_home(draft.value)
    if draft.doubtful.isdisjoint(LOSS_KEYS):
        section, problems = fill_knobs(draft.value.policy_loss, draft.extras, draft.texts)
        draft.value = replace(draft.value, policy_loss=section)
        draft.problems += problems
    settings = draft.value.algorithm
    if settings.advantage in ADVANTAGES:  # plugins, which register some, are loaded
        entry, key = ADVANTAGES.get(settings.advantage), "algorithm.advantage_knobs"
        knobs = knobs_as_written(entry, settings.advantage_knobs, draft.texts, key)
        draft.value = replace(draft.value, algorithm=replace(settings, advantage_knobs=knobs))
    return draft


def find_layout_problems(config: Config, shape: ModelShape) -> list[Problem]:
    """What the rules about ranks alone have to say."""
    problems = [problem for rule in layout.RULES for problem in rule(config)]
    return problems + [problem for model_rule in layout.MODEL_RULES for problem in model_rule(config, shape)]


def _moved_run(recipe: Path, config: Config) -> Iterator[Problem]:
    """The settings of a run whose directory is elsewhere than they say would begin another run where it was."""
    key, told, here = "trainer.run_dir", Path(config.trainer.run_dir), RunDirectory(recipe.parent)
    if recipe.name == here.config_file.name and here.metrics_file.is_file() and not told.exists():
        yield Problem(
            (key,),
            f"{key}={told} is not there, and {recipe} lies in the directory of its run, which has been moved: give "
            f"{key}={recipe.parent} to go on in it, or another {key} for a run from the start",
        )


def _checked(
    draft: Draft[Config], known_models: bool = False, without: Container[Rule | ModelRule] = ()
) -> LoadedConfig:
    config, model, problems = draft.value, None, []
    if "model.path" not in draft.doubtful:
        try:
            model = find_model(config.model, known_models=known_models)
        except ModelError as error:
            hint = machine.made_by(config.model.path)
            problems.append(Problem(("model.path",), f"model.path={config.model.path}: {error}{hint}"))
    problems += [problem for rule in RULES if rule not in without for problem in rule(config)]
    if model is not None:
        of_model = [model_rule for model_rule in MODEL_RULES if model_rule not in without]
        problems += [problem for model_rule in of_model for problem in model_rule(config, model.shape)]
    config = draft.checked(problems)
    assert model is not None, "a model that was not found is a problem"
    return LoadedConfig(config, model)
