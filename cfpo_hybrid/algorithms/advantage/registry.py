"""Advantage estimators by name, with the manners of the policy losses: own knobs, declared needs, user plugins.

An estimator is a function of the groups of a rollout batch and its own frozen config; it returns one number a response,
with no token axis. Generalised advantage estimation is not among them: it needs a critic, and there is none.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from cfpo_hybrid.algorithms.advantage.groups import OPTIONAL_INPUTS, AdvantageInputs, RewardGroups
from cfpo_hybrid.algorithms.knobs import KnobOwner, build_knobs, check_config_class, check_needs
from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.registry import Registry

AdvantageFunction = Callable[[RewardGroups, Any], Tensor]
Function = TypeVar("Function", bound=AdvantageFunction)


@dataclass(frozen=True, kw_only=True)
class NoKnobs:
    """The config of an estimator without knobs."""


def _two(config: object) -> int:
    return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageEntry:
    """What the registry holds for one name; ``register_advantage`` explains the fields."""

    function: AdvantageFunction
    config: type
    needs: frozenset[str]
    smallest_group: Callable[[Any], int]


ADVANTAGES: Registry[AdvantageEntry] = Registry("advantage")


def register_advantage(
    name: str,
    *,
    config: type = NoKnobs,
    needs: Collection[str] = (),
    smallest_group: Callable[[Any], int] = _two,
) -> Callable[[Function], Function]:
    """Registers ``function(groups, config) -> advantages [batch]``.

    Args:
        name: what recipes call it in ``algorithm.advantage``.
        config: a frozen dataclass of the estimator's own knobs, which recipes set in ``algorithm.advantage_knobs``.
        needs: those of ``response_lengths`` and ``greedy_rewards`` that the estimator reads.
        smallest_group: from the config, the fewest responses to a prompt that make sense.

    Raises:
        ConfigError: the config is no frozen dataclass, or a need is unknown.
        RegistryError: the name is taken.
    """
    check_config_class(f"advantage '{name}'", config)
    known_needs = check_needs(f"advantage '{name}'", needs, OPTIONAL_INPUTS)

    def register(function: Function) -> Function:
        entry = AdvantageEntry(function=function, config=config, needs=known_needs, smallest_group=smallest_group)
        ADVANTAGES.register(name, entry)
        return function

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantage:
    """A registered estimator with its knobs.

    Example: ``build_advantage("grpo")(AdvantageInputs(rewards=..., group_ids=...))`` is fp32 ``[batch]``.
    """

    name: str
    config: Any
    entry: AdvantageEntry

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs that must be present."""
        return self.entry.needs

    @property
    def smallest_group(self) -> int:
        """The fewest responses to a prompt that make sense."""
        return self.entry.smallest_group(self.config)

    def __call__(self, inputs: AdvantageInputs) -> Tensor:
        """The advantage of each response, fp32 ``[batch]``.

        Raises:
            BatchError: an input that the estimator needs is absent, or a group is too small for it.
        """
        present = {"response_lengths": inputs.response_lengths, "greedy_rewards": inputs.greedy_rewards}
        missing = sorted(need for need in self.needs if present[need] is None)
        if missing:
            raise BatchError(f"advantage '{self.name}' needs {', '.join(missing)}, which the inputs lack")
        groups = RewardGroups.of(inputs)
        if len(inputs.rewards) == 0:
            return inputs.rewards.float()
        small = groups.sizes < self.smallest_group
        if small.any():
            size = int(groups.sizes[small][0])
            few = "a single response" if size == 1 else f"{size} responses"
            raise BatchError(
                f"group {int(groups.names[small][0])} has {few}, and {self.name} compares {self.smallest_group} or more "
                f"responses of a group; set rollout.group_size to {self.smallest_group} or more"
            )
        return self.entry.function(groups, self.config).float()


def build_advantage(name: str, **knobs: object) -> Advantage:
    """The estimator of that name with these knobs.

    Raises:
        RegistryError: no such estimator.
        ConfigError: knobs that are unknown, missing, of the wrong type or outside their range, all of them at once.
    """
    entry = ADVANTAGES.get(name)
    config = build_knobs(KnobOwner("algorithm.advantage_knobs", name), entry.config, knobs)
    return Advantage(name=name, config=config, entry=entry)


def compute_advantages(name: str, rewards: Tensor, group_ids: Tensor, **knobs: object) -> Tensor:
    """The advantage of each response by an estimator that needs rewards and groups only, fp32 ``[batch]``."""
    return build_advantage(name, **knobs)(AdvantageInputs(rewards=rewards, group_ids=group_ids))
