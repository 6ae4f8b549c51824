"""Advantage estimators by name, with the manners of the policy losses: own knobs, declared needs, user plugins.

An estimator is a function of the groups of a rollout batch and its own frozen config; it returns one number a response,
with no token axis. Generalised advantage estimation is not among them: it needs a critic, and there is none.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from cfpo_hybrid.algorithms.rewards import OPTIONAL_INPUTS, AdvantageInputs, RewardGroups
from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.registry import FunctionEntry, FunctionRegistry, check_positive

AdvantageFunction = TypeVar("AdvantageFunction", bound=Callable[[RewardGroups, Any], Tensor])
PerResponse = Float64[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class NoKnobs:
    """The config of an estimator without knobs."""


def _two(config: object) -> int:
    return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageEntry(FunctionEntry):
    """What the registry holds for one name; ``register_advantage`` explains the fields."""

    KIND: ClassVar[str] = "advantage"
    OPTIONAL_INPUTS: ClassVar[tuple[str, ...]] = OPTIONAL_INPUTS

    smallest_group: Callable[[Any], int] = _two


ADVANTAGES: FunctionRegistry[AdvantageEntry] = FunctionRegistry(AdvantageEntry)


def register_advantage(
    name: str,
    *,
    config: type = NoKnobs,
    needs: Collection[str] = (),
    smallest_group: Callable[[Any], int] = _two,
) -> Callable[[AdvantageFunction], AdvantageFunction]:
    """Registers ``function(groups, config) -> advantages``, one a response.

    Args:
        name: what recipes call it.
        config: a frozen dataclass of the estimator's own knobs.
        needs: those of ``response_lengths`` and ``greedy_rewards`` that the estimator reads.
        smallest_group: from the config, the fewest responses to a prompt that make sense.

    Raises:
        ConfigError: the config is no frozen dataclass, or a need is unknown.
        RegistryError: the name is taken.
    """
    return ADVANTAGES.registering(name, config=config, needs=frozenset(needs), smallest_group=smallest_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantage:
    """A registered estimator with its knobs.

    Example: ``build_advantage("grpo")(AdvantageInputs(rewards=..., group_ids=...))`` is one number a response.
    """

    entry: AdvantageEntry
    config: Any

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs that must be present."""
        return self.entry.needs

    @property
    def smallest_group(self) -> int:
        """The fewest responses to a prompt that make sense."""
        return self.entry.smallest_group(self.config)

    def __call__(self, inputs: AdvantageInputs) -> Float32[Tensor, " batch"]:
        """The advantage of each response.

        Raises:
            BatchError: an input that the estimator needs is absent, or a group is too small for it.
        """
        self.entry.check_inputs(inputs)
        groups = RewardGroups.of(inputs)
        if len(inputs.rewards) == 0:
            return inputs.rewards.float()
        small = groups.sizes < self.smallest_group
        if small.any():
            size = int(groups.sizes[small][0])
            few = "a single response" if size == 1 else f"{size} responses"
            raise BatchError(
                f"group {int(groups.names[small][0])} has {few}, and {self.entry.name} compares {self.smallest_group} or "
                f"more responses of a group; sample as many to each prompt"
            )
        return self.entry.function(groups, self.config).float()


def build_advantage(name: str, **knobs: object) -> Advantage:
    """The estimator of that name with these knobs.

    Raises:
        RegistryError: no such estimator.
        ConfigError: knobs that are unknown, missing, of the wrong type or outside their range, all of them at once.
    """
    entry = ADVANTAGES.get(name)
    return Advantage(entry=entry, config=entry.configure(knobs))


def compute_advantages(
    name: str, rewards: Float[Tensor, " batch"], group_ids: Int[Tensor, " batch"], **knobs: object
) -> Float32[Tensor, " batch"]:
    """The advantage of each response by an estimator that needs rewards and groups only."""
    return build_advantage(name, **knobs)(AdvantageInputs(rewards=rewards, group_ids=group_ids))


# Estimators that compare a response with the others to the same prompt.


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Knobs of ``grpo``."""

    std_floor: float = 1e-6
    """Added to the standard deviation of a group; verl and DeepSeekMath's GRPO have 1e-6, TRL has 1e-4."""

    def __post_init__(self) -> None:
        check_positive(std_floor=self.std_floor)


@register_advantage("grpo", config=GrpoConfig)
def grpo(groups: RewardGroups, config: GrpoConfig) -> PerResponse:
    """(R - mean) / (std + std_floor), std unbiased (n - 1): equation 9 of the CFPO paper (Shao et al., 2024)."""
    variance = groups.sum(groups.centred.square()) / (groups.sizes - 1)
    return groups.centred / groups.spread(variance.sqrt() + config.std_floor)


@register_advantage("grpo_no_std")
def grpo_no_std(groups: RewardGroups, config: NoKnobs) -> PerResponse:
    """R - mean: without the std, groups of rare success are not blown up.

    It is half of Dr. GRPO; the other half is a division by a constant length, the aggregation ``seq_mean_token_sum_norm``.
    """
    return groups.centred


ADVANTAGES.alias(
    "dr_grpo",
    of="grpo_no_std",
    summary="R - mean: ``grpo_no_std`` under the name of its paper, Dr. GRPO (Liu et al., 2025, arXiv 2503.20783).",
)


@register_advantage("rloo")
def rloo(groups: RewardGroups, config: NoKnobs) -> PerResponse:
    """R - mean of the others = n / (n - 1) (R - mean): equation 10 of the CFPO paper (Ahmadian et al., 2024)."""
    return groups.centred * groups.spread(groups.sizes / (groups.sizes - 1))


@register_advantage("opo", needs=["response_lengths"])
def opo(groups: RewardGroups, config: NoKnobs) -> PerResponse:
    """R - mean weighted by length, sum(l R) / sum(l): Hao et al., 2025 (arXiv 2505.23585).

    The baseline of least variance if every token's gradient has the same norm and they are orthogonal. A group whose
    responses are all empty has no weights, and keeps the plain mean.
    """
    assert groups.lengths is not None, "declared as a need"
    total = groups.sum(groups.lengths)
    offset = groups.sum(groups.lengths * groups.centred) / total.clamp(min=1)
    return groups.centred - groups.spread(offset)


@dataclass(frozen=True, kw_only=True)
class PassAtKConfig:
    """Knobs of ``pass_at_k``."""

    k: int = 2
    """Size of the subsets whose best response counts; at most as large as the groups."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k={self.k} must be at least 2: the best of 1 is what every other estimator is for")


@register_advantage("pass_at_k", config=PassAtKConfig, smallest_group=lambda config: config.k)
def pass_at_k(groups: RewardGroups, config: PassAtKConfig) -> PerResponse:
    """How much a response raises the best of a random subset of k: mean of max(R - best of k - 1 others, 0).

    Walder and Karkhanis, 2025 (arXiv 2505.15201), the leave-one-out-minus-one baseline: an unbiased gradient of
    pass@k, divided by k, and of max@k for rewards that are no 0s and 1s. With k = n the best response gets what it is
    better than the second, all others 0: verl's ``grpo_passk`` before its division by the std (Tang et al., 2025,
    arXiv 2503.19595).
    Advantages are never negative.

    With the others sorted, the j-th (from 0) is the best of C(j, k - 2) of the C(n - 1, k - 1) subsets; those below the
    response itself, p of them, are C(p, k - 1) subsets in all. Hence
    (C(p, k - 1) R - sum over j < p of C(j, k - 2) R_j) / C(n - 1, k - 1).
    """
    by_reward = groups.centred.argsort()
    order = by_reward[groups.index[by_reward].argsort(stable=True)]  # by group, and by reward within each
    rewards, sizes = groups.centred[order], groups.sizes.long()
    starts = (sizes.cumsum(0) - sizes).index_select(0, groups.index[order])
    place = torch.arange(len(rewards)) - starts
    sums = torch.cat([rewards.new_zeros(1), (_subsets(place, config.k - 2) * rewards).cumsum(0)])
    below = sums[:-1] - sums[starts]
    raised = (_subsets(place, config.k - 1) * rewards - below) / _subsets(
        groups.spread(groups.sizes)[order].long() - 1, config.k - 1
    )
    return torch.empty_like(raised).scatter(0, order, raised)


def _subsets(items: Int[Tensor, " batch"], size: int) -> PerResponse:
    """The number of subsets of ``size`` out of each number of items; 0 where there are fewer items."""
    steps = torch.arange(size, dtype=torch.float64)
    return ((items.double().unsqueeze(1) - steps).clamp(min=0) / (steps + 1)).prod(dim=1)


# Estimators that look beyond the group.


@dataclass(frozen=True, kw_only=True)
class WhiteningConfig:
    """Knobs of ``reinforce_plus_plus`` and ``reinforce_plus_plus_baseline``."""

    std_floor: float = 1e-8
    """Added to the standard deviation of the batch."""

    def __post_init__(self) -> None:
        check_positive(std_floor=self.std_floor)


@register_advantage("reinforce_plus_plus", config=WhiteningConfig, smallest_group=lambda config: 1)
def reinforce_plus_plus(groups: RewardGroups, config: WhiteningConfig) -> PerResponse:
    """(R - mean) / std over all responses of the rollout batch: Hu et al., 2025 (arXiv 2501.03262).

    A response counts once; OpenRLHF and verl, which whiten token by token, count it once a token. Without a KL in the
    reward and at a discount of 1, both as here, that is the only difference.
    """
    return _whiten(groups.rewards, config.std_floor)


@register_advantage("reinforce_plus_plus_baseline", config=WhiteningConfig)
def reinforce_plus_plus_baseline(groups: RewardGroups, config: WhiteningConfig) -> PerResponse:
    """R - mean of the group, then divided by its std over the rollout batch: Hu et al., 2025 (arXiv 2501.03262)."""
    return _whiten(groups.centred, config.std_floor)


def _whiten(values: PerResponse, std_floor: float) -> PerResponse:
    """Mean 0 and unbiased std 1; a batch of one response, or of equal ones, gets 0."""
    # The first value is taken off so that equal ones leave exact zeros, which their mean in fp64 need not.
    shifted = values - values[0]
    centred = shifted - shifted.mean()
    std = (centred.square().sum() / max(len(values) - 1, 1)).sqrt()
    return centred / (std + std_floor)


@register_advantage("remax", needs=["greedy_rewards"], smallest_group=lambda config: 1)
def remax(groups: RewardGroups, config: NoKnobs) -> PerResponse:
    """R - reward of the greedy response to the same prompt: Li et al., 2023 (arXiv 2310.10505), algorithm 1."""
    assert groups.greedy is not None, "declared as a need"
    return groups.rewards - groups.greedy
