"""The library: batches, controller, algorithms, resharding and models. Imports neither Ray, Megatron nor vLLM."""

from cfpo_hybrid.algorithms.policy_loss import (
    PolicyLoss,
    PolicyLossInputs,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)
from cfpo_hybrid.errors import BatchError, CfpoError, ConfigError, RegistryError
from cfpo_hybrid.protocol.batch import DataProto

__all__ = [
    "BatchError",
    "CfpoError",
    "ConfigError",
    "DataProto",
    "PolicyLoss",
    "PolicyLossInputs",
    "RegistryError",
    "build_policy_loss",
    "describe_losses",
    "register_policy_loss",
]
