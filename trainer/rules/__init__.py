"""Every rule between settings: all mistakes of a configuration at once, each with the legal values nearby.

A rule is a function from the config (and the model's shape, where it needs one) to the problems it finds. To add one,
write it into the file of its subject and name it in that file's table.
"""

from collections.abc import Callable, Container, Iterable

from cfpo_hybrid.models import ModelShape
from trainer.config.problem import Problem
from trainer.config.schema import Config
from trainer.rules import algorithm, batch, bounds, device, files, layout, names, off_policy, sampling, watch

Rule = Callable[[Config], Iterable[Problem]]
ModelRule = Callable[[Config, ModelShape], Iterable[Problem]]

RULES: tuple[Rule, ...] = (
    *bounds.RULES,
    *names.RULES,
    *algorithm.RULES,
    *off_policy.RULES,
    *layout.RULES,
    *batch.RULES,
    *sampling.RULES,
    *watch.RULES,
    *device.RULES,
    *files.RULES,
)
MODEL_RULES: tuple[ModelRule, ...] = (*layout.MODEL_RULES, *batch.MODEL_RULES, *device.MODEL_RULES)


def find_problems(config: Config, shape: ModelShape | None, without: Container[Rule | ModelRule] = ()) -> list[Problem]:
    """What every rule has to say but for those left out; rules about the model need its shape."""
    problems = [problem for rule in RULES if rule not in without for problem in rule(config)]
    if shape is not None:
        asked = [model_rule for model_rule in MODEL_RULES if model_rule not in without]
        problems += [problem for model_rule in asked for problem in model_rule(config, shape)]
    return problems


def find_layout_problems(config: Config, shape: ModelShape) -> list[Problem]:
    """What the rules about ranks alone have to say: a quick test of another layout."""
    problems = [problem for rule in layout.RULES for problem in rule(config)]
    return problems + [problem for model_rule in layout.MODEL_RULES for problem in model_rule(config, shape)]
