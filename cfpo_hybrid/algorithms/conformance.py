"""The conformance suite that any registered policy loss can be put through: ``cfpo check-loss NAME``.

Takes a loss's name and knobs, gives one result a property. The properties are those that training relies on: the first
step is REINFORCE's, padding and layout do not matter, nothing overflows.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cfpo_hybrid.algorithms.objective import AGGREGATIONS, LossDenominators, PolicyObjective
from cfpo_hybrid.algorithms.policy_loss.inputs import MiniBatchTokens, PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import PolicyLoss, build_policy_loss

RESPONSE_LENGTHS = (5, 1, 4, 3, 5, 2)
"""Of the made-up batch that every check starts from."""
EXTREME_LOG_RATIOS = (-1e4, -50.0, -20.0, -5.0, 5.0, 20.0, 50.0, 1e4)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether a loss has one property.

    Example: ``CheckResult("gradient at r = 1", True, "largest difference from -A: 1.1e-16")``.
    """

    name: str
    passed: bool
    detail: str


def check_policy_loss(name: str, **knobs: object) -> list[CheckResult]:
    """Runs every check on the loss of that name.

    Raises:
        RegistryError: no such loss.
        ConfigError: knobs that the loss does not accept.
    """
    loss = build_policy_loss(name, **knobs)
    return [_run(title, check, loss) for title, check in CHECKS.items()]


def format_check_results(name: str, results: Sequence[CheckResult]) -> str:
    """The results as a plain table that ends in a verdict."""
    width = max(len(result.name) for result in results)
    lines = [f"  {'pass' if result.passed else 'FAIL'}  {result.name:<{width}}  {result.detail}" for result in results]
    failed = sum(not result.passed for result in results)
    verdict = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    return "\n".join([f"policy loss '{name}'", *lines, verdict])


def _run(title: str, check: Callable[[PolicyLoss], tuple[bool, str]], loss: PolicyLoss) -> CheckResult:
    try:
        passed, detail = check(loss)
    except Exception as error:  # a loss is the user's code: whatever it raises is the finding
        passed, detail = False, f"raised {type(error).__name__}: {error}"
    return CheckResult(title, passed, detail)


def _batch(dtype: torch.dtype = torch.float64) -> PolicyLossInputs:
    """Six padded responses with log-ratios of standard deviation 0.3; nothing in it is a round number."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(RESPONSE_LENGTHS), max(RESPONSE_LENGTHS))
    old, noise, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    old = -old.abs() - 0.1
    log_probs = (old + 0.3 * noise).to(dtype).requires_grad_()
    return PolicyLossInputs(
        log_probs=log_probs,
        old_log_probs=old.to(dtype),
        advantages=torch.tensor([1.3, -0.7, 0.4, -1.9, -0.2, 0.9], dtype=dtype),
        mask=torch.arange(shape[1]) < torch.tensor(RESPONSE_LENGTHS).unsqueeze(1),
        rollout_log_probs=old.to(dtype),
        ref_log_probs=(old + 0.1 * other).to(dtype),
        entropy=other.abs().to(dtype).requires_grad_(),
    )


def _with_statistics(
    loss: PolicyLoss, inputs: PolicyLossInputs, whole: PolicyLossInputs | None = None
) -> PolicyLossInputs:
    """The inputs with the loss's statistics of the mini-batch ``whole``, themselves by default."""
    source = whole if whole is not None else inputs
    tokens = MiniBatchTokens.of(source.old_log_probs, source.advantages, source.mask)
    return dataclasses.replace(inputs, statistics=loss.statistics(tokens))


def _gradient(loss: PolicyLoss, inputs: PolicyLossInputs) -> tuple[PerToken, PerToken]:
    """Per-token loss, and the gradient of its sum with respect to the log-probs."""
    per_token = loss(_with_statistics(loss, inputs))
    (gradient,) = torch.autograd.grad(per_token.sum(), inputs.log_probs)
    return per_token.detach(), gradient


def _by_token(inputs: PolicyLossInputs) -> PolicyLossInputs:
    """The same with advantages that differ along each response, in sign too."""
    noise = torch.randn(inputs.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return dataclasses.replace(inputs, advantages=inputs.advantages + noise.to(inputs.advantages.dtype))


def _with_log_ratio(inputs: PolicyLossInputs, log_ratio: float) -> PolicyLossInputs:
    return dataclasses.replace(inputs, log_probs=(inputs.old_log_probs + log_ratio).requires_grad_())


def _check_output(loss: PolicyLoss) -> tuple[bool, str]:
    inputs = _with_statistics(loss, _batch(torch.float32))
    before = {name: value.detach().clone() for name, value in inputs.tensors().items()}
    per_token = loss(inputs)
    changed = [name for name, value in inputs.tensors().items() if not torch.equal(value, before[name])]
    if changed:
        return False, f"changes its inputs in place: {', '.join(changed)}"
    if per_token.dtype != torch.float32:
        return False, f"returns {per_token.dtype} for fp32 inputs"
    return bool(per_token.isfinite().all()), f"{list(per_token.shape)} {per_token.dtype}, inputs untouched"


def _check_on_policy(loss: PolicyLoss, batch: PolicyLossInputs | None = None) -> tuple[bool, str]:
    inputs = _with_log_ratio(batch or _batch(), 0.0)
    _, gradient = _gradient(loss, inputs)
    dropped = inputs.mask & (gradient == 0) if loss.entry.drops_tokens else torch.zeros_like(inputs.mask)
    difference = (gradient + inputs.advantages)[inputs.mask & ~dropped].abs().amax()
    left_out = f"; {int(dropped.count_nonzero())} tokens left out on purpose" if loss.entry.drops_tokens else ""
    return bool(difference < 1e-9), f"largest difference from -A: {float(difference):.1e}{left_out}"


def _check_on_policy_by_token(loss: PolicyLoss) -> tuple[bool, str]:
    passed, detail = _check_on_policy(loss, _by_token(_batch()))
    hint = "" if passed else "; a ratio of a whole response that moves each token by its own A: inputs.sequence_ratio"
    return passed, f"{detail}{hint}"


def _check_gradient(loss: PolicyLoss) -> tuple[bool, str]:
    if loss.entry.stops_gradient:
        return True, "skipped: the loss stops gradients on purpose"
    inputs = _with_statistics(loss, _batch())

    def total(log_probs: PerToken) -> Float[Tensor, ""]:
        return loss(dataclasses.replace(inputs, log_probs=log_probs)).sum()

    if torch.autograd.gradcheck(total, (inputs.log_probs,), raise_exception=False):
        return True, "agrees with finite differences in fp64"
    return False, "differs from finite differences; if a detach is meant, register the loss with stops_gradient=True"


def _check_zero_advantage(loss: PolicyLoss) -> tuple[bool, str]:
    inputs = _batch()
    _, gradient = _gradient(loss, dataclasses.replace(inputs, advantages=torch.zeros_like(inputs.advantages)))
    largest = gradient.abs().max()
    return bool(largest == 0), f"largest gradient where A = 0: {float(largest):.1e}"


def _check_padding(loss: PolicyLoss) -> tuple[bool, str]:
    inputs = _batch()
    tensors = {name: value.detach() for name, value in inputs.tensors().items() if value.is_floating_point()}
    poisoned = {name: value.masked_fill(~inputs.mask, float("nan")) for name, value in tensors.items()}
    dirty = dataclasses.replace(inputs, **poisoned)
    clean_output, dirty_output = (_objective_result(loss, each, AGGREGATIONS[0]) for each in (inputs, dirty))
    same = torch.equal(clean_output[0], dirty_output[0]) and torch.equal(clean_output[1], dirty_output[1])
    return same, "loss and gradient unchanged" if same else "NaN outside the mask reaches the loss or its gradient"


def _check_extremes(loss: PolicyLoss) -> tuple[bool, str]:
    for advantage in (1.0, -1.0):
        for log_ratio in EXTREME_LOG_RATIOS:
            inputs = _with_log_ratio(_batch(torch.float32), log_ratio)
            advantages = torch.full_like(inputs.advantages, advantage)
            per_token, gradient = _gradient(loss, dataclasses.replace(inputs, advantages=advantages))
            if not (per_token.isfinite().all() and gradient.isfinite().all()):
                return False, f"not finite in fp32 at log-ratio {log_ratio:g}, A = {advantage:g}"
    return True, f"finite in fp32 for log-ratios from {EXTREME_LOG_RATIOS[0]:g} to {EXTREME_LOG_RATIOS[-1]:g}"


def _check_splits(loss: PolicyLoss) -> tuple[bool, str]:
    inputs, worst = _by_token(_batch()), 0.0
    for aggregation in AGGREGATIONS:
        whole = _objective_result(loss, inputs, aggregation)
        parts = [
            _objective_result(loss, _rows(inputs, rows), aggregation, whole=inputs)
            for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]
        value = torch.stack([part[0] for part in parts]).sum()
        gradient = torch.cat([part[1] for part in parts])
        worst = max(worst, float((value - whole[0]).abs()), float((gradient - whole[1]).abs().max()))
    return worst < 1e-9, f"three micro-batches add up to the whole within {worst:.1e}"


def _check_packing(loss: PolicyLoss) -> tuple[bool, str]:
    inputs, worst = _by_token(_batch()), 0.0
    for aggregation in AGGREGATIONS:
        padded = _objective_result(loss, inputs, aggregation)
        packed = _objective_result(loss, inputs.packed(), aggregation, whole=inputs)
        difference = (packed[1] - padded[1][inputs.mask]).abs().max()
        worst = max(worst, float((packed[0] - padded[0]).abs()), float(difference))
    return worst < 1e-9, f"packed and padded agree within {worst:.1e}"


CHECKS: dict[str, Callable[[PolicyLoss], tuple[bool, str]]] = {
    "one fp32 loss a token": _check_output,
    "gradient at r = 1 is -A": _check_on_policy,
    "the same where A differs by token": _check_on_policy_by_token,
    "gradcheck in fp64": _check_gradient,
    "zero advantage, zero gradient": _check_zero_advantage,
    "NaN in the padding": _check_padding,
    "extreme log-ratios": _check_extremes,
    "split into micro-batches": _check_splits,
    "padded equals packed": _check_packing,
}


def _objective_result(
    loss: PolicyLoss, inputs: PolicyLossInputs, aggregation: str, whole: PolicyLossInputs | None = None
) -> tuple[Float[Tensor, ""], PerToken]:
    """Aggregated loss and its gradient, with the denominators and statistics of ``whole`` (padded)."""
    denominators = LossDenominators.of_mask((whole if whole is not None else inputs).mask)
    leaf = dataclasses.replace(inputs, log_probs=inputs.log_probs.detach().requires_grad_())
    leaf = _with_statistics(loss, leaf, whole)
    output = PolicyObjective(loss=loss, aggregation=aggregation)(leaf, denominators)
    (gradient,) = torch.autograd.grad(output.loss, leaf.log_probs)
    return output.loss.detach(), gradient


def _rows(inputs: PolicyLossInputs, rows: slice) -> PolicyLossInputs:
    """Some rows of padded inputs."""
    return dataclasses.replace(inputs, **{name: value[rows] for name, value in inputs.tensors().items()})
