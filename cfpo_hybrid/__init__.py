"""The library: batches, controller, algorithms, resharding and models. Imports neither Ray, Megatron nor vLLM.

What needs tensors is loaded when it is first asked for: ``import cfpo_hybrid`` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cfpo_hybrid.errors import BatchError, CfpoError, ConfigError, RegistryError

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

if TYPE_CHECKING:
    from cfpo_hybrid.algorithms.policy_loss import (
        PolicyLoss,
        PolicyLossInputs,
        build_policy_loss,
        describe_losses,
        register_policy_loss,
    )
    from cfpo_hybrid.protocol.batch import DataProto
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "cfpo_hybrid.protocol.batch" if name == "DataProto" else "cfpo_hybrid.algorithms.policy_loss"
        globals()[name] = getattr(import_module(home), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
