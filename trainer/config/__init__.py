"""Configuration: a recipe and overrides become one frozen, checked ``Config``."""

from trainer.config.load import LoadedConfig, load_and_inspect, load_config, read_config, resolved, save_resolved
from trainer.config.root import Config
from trainer.config.trainer_config import TrainerConfig

__all__ = [
    "Config",
    "LoadedConfig",
    "TrainerConfig",
    "load_and_inspect",
    "load_config",
    "read_config",
    "resolved",
    "save_resolved",
]
