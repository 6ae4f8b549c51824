"""The parts of which ``trainer.rules`` makes a frozen ``Config`` out of a recipe and overrides; no rules between settings.

schema.py      the dataclasses, the numbers that follow from them, and plain settings again
sources.py     a recipe or an override -> a tree of settings with their lines
merge.py       trees -> dataclasses, with every unknown key and wrong type
paths.py       settings that name files, the same from any folder
problem.py     a mistake, and the legal values near it
losses.py      policy losses as recipes and command lines name them
model.py       the model that a recipe names, and its shape
reference.py   writes docs/configuration.md
"""

from trainer.config.schema import Config, DataConfig, TrainerConfig, changed_settings, resolved

__all__ = ["Config", "DataConfig", "TrainerConfig", "changed_settings", "resolved"]
