"""Policy losses by name: how one is registered, built with its knobs, and called.

A loss is a function of a micro-batch's inputs and its own frozen config; it returns the per-token loss to minimise.
Masking, aggregation, scaling and metrics belong to the framework (``objective.py``).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import OPTIONAL_INPUTS, MiniBatchTokens, PerToken, PolicyLossInputs
from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.registry import FunctionEntry, FunctionRegistry

LossFunction = TypeVar("LossFunction", bound=Callable[[PolicyLossInputs, Any], Tensor])
StatisticsFunction = Callable[[MiniBatchTokens, Any], Any]


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """The interval [1 - low, 1 + high] of ratios against which the common metrics count tokens."""

    low: float = 0.2
    high: float = 0.2


def _default_trust_region(config: object) -> TrustRegion:
    return TrustRegion()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEntry(FunctionEntry):
    """What the registry holds for one name; ``register_policy_loss`` explains the fields."""

    KIND: ClassVar[str] = "policy loss"
    OPTIONAL_INPUTS: ClassVar[tuple[str, ...]] = OPTIONAL_INPUTS

    trust_region: Callable[[Any], TrustRegion] = _default_trust_region
    statistics: StatisticsFunction | None = None
    stops_gradient: bool = False
    drops_tokens: bool = False
    aggregations: tuple[str, ...] = ()


POLICY_LOSSES: FunctionRegistry[LossEntry] = FunctionRegistry(LossEntry)


def register_policy_loss(
    name: str,
    *,
    config: type,
    needs: Collection[str] = (),
    trust_region: Callable[[Any], TrustRegion] = _default_trust_region,
    statistics: StatisticsFunction | None = None,
    stops_gradient: bool = False,
    drops_tokens: bool = False,
    aggregations: Collection[str] = (),
) -> Callable[[LossFunction], LossFunction]:
    """Registers ``function(inputs, config) -> per-token loss`` under a name.

    Args:
        name: what recipes call it.
        config: a frozen dataclass of the loss's own knobs, each with a default where one makes sense; checks of values
            go into its ``__post_init__`` as ``ValueError``.
        needs: those of ``rollout_log_probs``, ``ref_log_probs`` and ``entropy`` that the loss reads.
        trust_region: from the config, the ratios that the metrics call trusted; by default within 0.2 of 1.
        statistics: ``function(tokens, config)``, called once a mini-batch; ``inputs.statistics`` holds what it returned.
        stops_gradient: the loss detaches a part of itself on purpose, so finite differences cannot check its gradient.
        drops_tokens: the loss leaves some tokens out on purpose, so their gradient is 0 even at r = 1.
        aggregations: the values of ``algorithm.loss_aggregation`` under which it is the loss it is called; a recipe with
            another one is refused. By default it may be any.

    Example::

        @register_policy_loss("reinforce", config=ReinforceConfig)
        def reinforce(inputs: PolicyLossInputs, config: ReinforceConfig) -> Tensor:
            return -inputs.log_probs * inputs.advantages

    Raises:
        ConfigError: the config is no frozen dataclass, or a need is unknown.
        RegistryError: the name is taken.
    """
    return POLICY_LOSSES.registering(
        name,
        config=config,
        needs=frozenset(needs),
        trust_region=trust_region,
        statistics=statistics,
        stops_gradient=stops_gradient,
        drops_tokens=drops_tokens,
        aggregations=tuple(aggregations),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """A registered loss with its knobs: call it with inputs to get the per-token loss.

    Example: ``build_policy_loss("cfpo", epsilon=0.1)(inputs)`` has the shape of ``inputs.log_probs``.
    """

    entry: LossEntry
    config: Any

    @property
    def name(self) -> str:
        """What recipes call it."""
        return self.entry.name

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs that must be present."""
        return self.entry.needs

    @property
    def trust_region(self) -> TrustRegion:
        """The ratios that the common metrics count as trusted."""
        return self.entry.trust_region(self.config)

    @property
    def needs_statistics(self) -> bool:
        """Whether ``inputs.statistics`` must hold :meth:`statistics` of the mini-batch."""
        return self.entry.statistics is not None

    def statistics(self, tokens: MiniBatchTokens) -> Any:
        """What the loss needs to know of a whole mini-batch, None for most losses; collective over its ranks."""
        return None if self.entry.statistics is None else self.entry.statistics(tokens, self.config)

    def __call__(self, inputs: PolicyLossInputs) -> PerToken:
        """The per-token loss to minimise, shaped like ``inputs.log_probs``, exactly 0 outside the mask.

        Raises:
            BatchError: an input that the loss needs is absent, or its result is not one number a token.
        """
        self.entry.check_inputs(inputs)
        if self.needs_statistics and inputs.statistics is None:
            raise BatchError(
                f"{self.entry} needs statistics of the mini-batch, which the inputs lack; set them to "
                f"loss.statistics(MiniBatchTokens.of(old_log_probs, advantages, mask))"
            )
        per_token = self.entry.function(inputs, self.config)
        if per_token.shape != inputs.log_probs.shape:
            raise BatchError(
                f"{self.entry} returned shape {list(per_token.shape)}; it must return one loss a token, "
                f"shaped like log_probs: {list(inputs.log_probs.shape)}. Leave sums and means to the framework"
            )
        return inputs.counted(per_token)


def build_policy_loss(name: str, **knobs: object) -> PolicyLoss:
    """The loss of that name with these knobs.

    Raises:
        RegistryError: no such loss.
        ConfigError: knobs that are unknown, missing, of the wrong type or outside their range, all of them at once.
    """
    entry = POLICY_LOSSES.get(name)
    return PolicyLoss(entry=entry, config=entry.configure(knobs))


def describe_losses() -> list[LossEntry]:
    """Every registered loss by name, user losses included once their plugins are loaded.

    Each tells its ``name``, ``summary``, ``knobs``, ``needs`` and ``source``.
    """
    return POLICY_LOSSES.entries()
