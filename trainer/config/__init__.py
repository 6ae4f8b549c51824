"""Configuration: a recipe and overrides become one frozen, checked ``Config``.

schema.py      the dataclasses, and the numbers that follow from them
sources.py     a recipe or an override -> a tree of settings with their lines
merge.py       trees -> dataclasses, with every unknown key and wrong type
load.py        these in order: ``load_config(recipe, overrides)``
resolved.py    a Config as a recipe again
"""

from trainer.config.resolved import resolved, save_resolved
from trainer.config.schema import Config
from trainer.config.trainer_config import TrainerConfig

__all__ = ["Config", "TrainerConfig", "resolved", "save_resolved"]
