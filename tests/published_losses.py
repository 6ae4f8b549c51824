"""The losses of this project, without those that other tests have registered in the same process."""

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES, LossEntry
from cfpo_hybrid.registry import Registry


def published_losses() -> Registry[LossEntry]:
    published = Registry[LossEntry]("policy loss")
    for name in POLICY_LOSSES.names():
        entry = POLICY_LOSSES.get(name)
        if entry.function.__module__.startswith("cfpo_hybrid."):
            published.register(name, entry)
    return published
