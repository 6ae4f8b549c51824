"""Policy losses by name: how one is registered, built with its knobs, and called.

A loss is a function of a micro-batch's inputs and its own frozen config; it returns the per-token loss to minimise.
Masking, aggregation, scaling and metrics belong to the framework (``objective.py``).
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import OPTIONAL_INPUTS, PolicyLossInputs
from cfpo_hybrid.errors import BatchError, ConfigError
from cfpo_hybrid.registry import Registry, nearest_name

LossFunction = Callable[[PolicyLossInputs, Any], Tensor]
Function = TypeVar("Function", bound=LossFunction)


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """The interval [1 - low, 1 + high] of ratios against which the common metrics count tokens."""

    low: float = 0.2
    high: float = 0.2


def _default_trust_region(config: object) -> TrustRegion:
    return TrustRegion()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEntry:
    """What the registry holds for one name; ``register_policy_loss`` explains the fields."""

    function: LossFunction
    config: type
    needs: frozenset[str]
    trust_region: Callable[[Any], TrustRegion]
    stops_gradient: bool


POLICY_LOSSES: Registry[LossEntry] = Registry("policy loss")


def register_policy_loss(
    name: str,
    *,
    config: type,
    needs: Collection[str] = (),
    trust_region: Callable[[Any], TrustRegion] = _default_trust_region,
    stops_gradient: bool = False,
) -> Callable[[Function], Function]:
    """Registers ``function(inputs, config) -> per-token loss`` under a name.

    Args:
        name: what recipes call it in ``policy_loss.name``.
        config: a frozen dataclass of the loss's own knobs, each with a default where one makes sense; checks of values
            go into its ``__post_init__`` as ``ValueError``.
        needs: those of ``rollout_log_probs``, ``ref_log_probs`` and ``entropy`` that the loss reads.
        trust_region: from the config, the ratios that the metrics call trusted; by default within 0.2 of 1.
        stops_gradient: the loss detaches a part of itself on purpose, so finite differences cannot check its gradient.

    Example::

        @register_policy_loss("reinforce", config=ReinforceConfig)
        def reinforce(inputs: PolicyLossInputs, config: ReinforceConfig) -> Tensor:
            return -inputs.log_probs * inputs.advantages

    Raises:
        ConfigError: the config is no frozen dataclass, or a need is unknown.
        RegistryError: the name is taken.
    """
    if not (is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(f"the config of policy loss '{name}' is {config!r}; it must be a frozen dataclass")
    for need in needs:
        if need not in OPTIONAL_INPUTS:
            raise ConfigError(f"policy loss '{name}' needs '{need}'; it can ask for {', '.join(OPTIONAL_INPUTS)}")

    def register(function: Function) -> Function:
        entry = LossEntry(
            function=function,
            config=config,
            needs=frozenset(needs),
            trust_region=trust_region,
            stops_gradient=stops_gradient,
        )
        POLICY_LOSSES.register(name, entry)
        return function

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """A registered loss with its knobs: call it with inputs to get the per-token loss.

    Example: ``build_policy_loss("cfpo", epsilon=0.1)(inputs)`` has the shape of ``inputs.log_probs``.
    """

    name: str
    config: Any
    entry: LossEntry

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs that must be present."""
        return self.entry.needs

    @property
    def trust_region(self) -> TrustRegion:
        """The ratios that the common metrics count as trusted."""
        return self.entry.trust_region(self.config)

    def __call__(self, inputs: PolicyLossInputs) -> Tensor:
        """The per-token loss to minimise, shaped like ``inputs.log_probs``, exactly 0 outside the mask.

        Raises:
            BatchError: an input that the loss needs is absent, or its result is not one number a token.
        """
        present = {"rollout_log_probs": inputs.rollout_log_probs, "ref_log_probs": inputs.ref_log_probs}
        present["entropy"] = inputs.entropy
        missing = sorted(need for need in self.needs if present[need] is None)
        if missing:
            raise BatchError(f"policy loss '{self.name}' needs {', '.join(missing)}, which the inputs lack")
        per_token = self.entry.function(inputs, self.config)
        if per_token.shape != inputs.log_probs.shape:
            raise BatchError(
                f"policy loss '{self.name}' returned shape {list(per_token.shape)}; it must return one loss a token, "
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
    problems, values = _checked_knobs(name, entry.config, knobs)
    if problems:
        raise ConfigError(problems)
    try:
        config = entry.config(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"policy_loss of '{name}': {error}") from error
    return PolicyLoss(name=name, config=config, entry=entry)


def _checked_knobs(name: str, config: type, knobs: dict[str, object]) -> tuple[list[str], dict[str, object]]:
    """Problems found, and the knobs with whole numbers turned into floats where a float is meant."""
    types = get_type_hints(config)
    known = {knob.name: knob for knob in fields(config) if knob.init}
    problems, values = [], dict(knobs)
    for knob, value in knobs.items():
        if knob not in known:
            nearest = nearest_name(knob, known)
            hint = f"; did you mean '{nearest}'?" if nearest else ""
            listing = ", ".join(known) or "none"
            problems.append(f"policy_loss.{knob}={value!r}: '{name}' has no such knob; its knobs: {listing}{hint}")
        elif types[knob] is float and isinstance(value, int) and not isinstance(value, bool):
            values[knob] = float(value)
        elif types[knob] in (float, int, bool, str) and type(value) is not types[knob]:
            problems.append(f"policy_loss.{knob}={value!r} must be of type {types[knob].__name__}")
    for knob, field in known.items():
        if knob not in knobs and field.default is MISSING and field.default_factory is MISSING:
            problems.append(f"policy_loss.{knob} is missing: '{name}' has no default for it; give it a value")
    return problems, values


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDescription:
    """What ``cfpo losses`` shows of one loss.

    Example: name "cfpo", knobs (("epsilon", "float", "0.2"),), source "cfpo_hybrid/.../cfpo.py:31".
    """

    name: str
    summary: str
    knobs: tuple[tuple[str, str, str], ...]
    """Name, type and default ("required" without one) of each knob."""
    needs: tuple[str, ...]
    source: str
    """File and line of the function."""


def describe_losses() -> list[LossDescription]:
    """Every registered loss by name, user losses included once their plugins are loaded."""
    return [_describe(name, POLICY_LOSSES.get(name)) for name in POLICY_LOSSES.names()]


def _describe(name: str, entry: LossEntry) -> LossDescription:
    code = inspect.unwrap(entry.function).__code__
    path = Path(code.co_filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    knobs = []
    for field in fields(entry.config):
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        knobs.append((field.name, kind, "required" if field.default is MISSING else repr(field.default)))
    documentation = inspect.getdoc(entry.function) or ""
    return LossDescription(
        name=name,
        summary=documentation.partition("\n")[0],
        knobs=tuple(knobs),
        needs=tuple(sorted(entry.needs)),
        source=f"{shown}:{code.co_firstlineno}",
    )
