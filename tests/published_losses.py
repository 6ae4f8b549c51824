"""The losses of this project, without those that other tests have registered in the same process."""

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES, LossEntry
from cfpo_hybrid.registry import FunctionRegistry


def published_losses() -> FunctionRegistry[LossEntry]:
    published = FunctionRegistry(LossEntry)
    for entry in POLICY_LOSSES.entries():
        if entry.function.__module__.startswith("cfpo_hybrid."):
            published.register(entry.name, entry)
    return published
