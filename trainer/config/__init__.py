"""Configuration: a recipe and overrides become one frozen ``Config``. ``trainer.rules`` says what it must obey.

schema.py      the dataclasses, and the numbers that follow from them
sources.py     a recipe or an override -> a tree of settings with their lines
merge.py       trees -> dataclasses, with every unknown key and wrong type
problem.py     a mistake, and the legal values near it
losses.py      policy losses as recipes and command lines name them
model.py       the shape of the model that a recipe names
load.py        all of these in order
resolved.py    a Config as plain settings again
reference.py   writes docs/configuration.md
"""

from trainer.config.resolved import changed_settings, resolved
from trainer.config.schema import Config, DataConfig, TrainerConfig

__all__ = ["Config", "DataConfig", "TrainerConfig", "changed_settings", "resolved"]
