"""The objective: value and gradient, terms, metrics by hand, and independence of splits."""

import dataclasses
import math

import pytest
import torch

from cfpo_hybrid import BatchError, ConfigError, PolicyLossInputs, build_policy_loss, register_policy_loss
from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.mismatch import RolloutCorrection
from cfpo_hybrid.algorithms.objective import AGGREGATIONS, LossDenominators, PolicyObjective, token_weights
from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig

NAN = float("nan")
# Old and rollout log-probs differ by 0.01 nats a token, so that these bounds leave some out.
CORRECTION = RolloutCorrection(mode="mask", level="sequence", lower=0.99, upper=1.01, reject_upper=1.005)


@register_policy_loss("objective_test_constant", config=CfpoConfig)
def constant_loss(inputs, config):
    return torch.zeros_like(inputs.advantages)


@register_policy_loss("objective_test_entropy", config=CfpoConfig, needs=["entropy"])
def entropy_loss(inputs, config):
    return -inputs.ratio * inputs.advantages * inputs.entropy


def batch(seed=0, dtype=torch.float64):
    """Four padded responses of 4, 2, 1 and 3 tokens with everything, NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 4)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1], [3]])
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)

    def noisy(scale):
        values = old + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.masked_fill(~mask, NAN).to(dtype)

    return PolicyLossInputs(
        log_probs=noisy(0.3).requires_grad_(),
        old_log_probs=noisy(0.0),
        advantages=torch.tensor([1.0, -0.5, 0.0, -2.0], dtype=dtype),
        mask=mask,
        rollout_log_probs=noisy(0.01),
        ref_log_probs=noisy(0.2),
        entropy=torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
    )


def rows(inputs, chosen):
    return PolicyLossInputs(**{name: value[chosen] for name, value in inputs.tensors().items()})


def gradients(objective, inputs, denominators):
    log_probs, entropy = inputs.log_probs.detach().requires_grad_(), inputs.entropy.detach().requires_grad_()
    output = objective(dataclasses.replace(inputs, log_probs=log_probs, entropy=entropy), denominators)
    output.loss.backward()
    return output.loss.detach(), log_probs.grad, entropy.grad, output.metrics


def reduced(metrics):
    sums = MetricSums()
    sums.add(metrics)
    return sums.reduce()


def full_objective(name="cfpo", aggregation="seq_mean_token_mean", **options):
    options |= {"kl_coef": 0.1, "kl_estimator": "k3", "entropy_coef": 0.05}
    return PolicyObjective(loss=build_policy_loss(name), aggregation=aggregation, **options)


def test_equation_8_by_hand():
    # Two responses, epsilon 0.5 so that |A| / (2 eps) = |A|. Ratios 1.5 and 1 (A = 1), and 0.5 (A = -2):
    #   response 0: tokens 1.5 - 0.25 = 1.25 and 1 -> mean 1.125
    #   response 1: -1 - 2 * 0.25 = -1.5
    #   mean over responses: (1.125 - 1.5) / 2 = -0.1875, and the loss is its negative
    inputs = PolicyLossInputs(
        log_probs=torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log().requires_grad_(),
        old_log_probs=torch.zeros(2, 2),
        advantages=torch.tensor([1.0, -2.0]),
        mask=torch.tensor([[True, True], [True, False]]),
    )
    objective = PolicyObjective(loss=build_policy_loss("cfpo", epsilon=0.5))
    output = objective(inputs, LossDenominators.of_mask(inputs.mask))
    assert float(output.loss.detach()) == pytest.approx(0.1875)
    assert reduced(output.metrics)["actor/loss"] == pytest.approx(0.1875)


@pytest.mark.parametrize("name", ["clip", "dual_clip", "cfpo"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_value_and_gradient_are_those_of_the_plain_formula(name, aggregation):
    inputs = batch()
    denominators = LossDenominators(num_tokens=17.0, num_sequences=6.0, max_length=9.0)
    value, for_log_probs, for_entropy, _ = gradients(full_objective(name, aggregation), inputs, denominators)

    counts = inputs.mask.sum(dim=1, keepdim=True)
    weights = {
        "token_mean": torch.full((4, 4), 1 / 17.0),
        "seq_mean_token_sum": torch.full((4, 4), 1 / 6.0),
        "seq_mean_token_sum_norm": torch.full((4, 4), 1 / 54.0),
        "seq_mean_token_mean": (1 / (6.0 * counts)).expand(4, 4),
    }[aggregation].double()[inputs.mask]
    log_probs = inputs.log_probs.detach()[inputs.mask].requires_grad_()
    entropy = inputs.entropy.detach()[inputs.mask].requires_grad_()
    flat = PolicyLossInputs(
        log_probs, inputs.old_log_probs[inputs.mask], inputs.advantages[inputs.mask], torch.ones(10, dtype=torch.bool)
    )
    d = log_probs - inputs.ref_log_probs[inputs.mask]
    per_token = build_policy_loss(name)(flat) + 0.1 * (torch.exp(-d) - 1 + d) - 0.05 * entropy
    expected = (weights * per_token).sum()
    expected.backward()

    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(for_log_probs[inputs.mask], log_probs.grad)
    torch.testing.assert_close(for_entropy[inputs.mask], entropy.grad)
    assert (for_log_probs[~inputs.mask] == 0).all() and (for_entropy[~inputs.mask] == 0).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[2, 0], [3, 1]], [[3], [0, 1, 2]]])
def test_splits_do_not_matter(aggregation, cut):
    inputs, objective = batch(), full_objective(aggregation=aggregation, correction=CORRECTION)
    denominators = LossDenominators.of_mask(inputs.mask)
    whole, whole_gradient, _, whole_metrics = gradients(objective, inputs, denominators)
    sums, total, gradient = MetricSums(), torch.zeros((), dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for chosen in cut:
        value, gradient[chosen], _, metrics = gradients(objective, rows(inputs, chosen), denominators)
        total += value
        sums.add(metrics)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradient, whole_gradient)
    assert sums.reduce() == pytest.approx(reduced(whole_metrics))


@pytest.mark.parametrize("name", ["clip", "dual_clip", "cfpo"])
def test_packed_equals_padded_metrics_included(name):
    inputs, objective = batch(), full_objective(name, correction=CORRECTION)
    denominators = LossDenominators.of_mask(inputs.mask)
    value, gradient, _, metrics = gradients(objective, inputs, denominators)
    packed_value, packed_gradient, _, packed_metrics = gradients(objective, inputs.packed(), denominators)
    torch.testing.assert_close(packed_value, value)
    torch.testing.assert_close(packed_gradient, gradient[inputs.mask])
    assert reduced(packed_metrics) == pytest.approx(reduced(metrics))


def test_metrics_by_hand():
    # epsilon 0.2. Tokens (r, A):  (1.5, 1) outside, PPO would clip, CFPO corrects: 1.5 (1 - 2.5) < 0
    #                              (1.1, 1) inside
    #                              (0.5, -1) outside, PPO would clip, corrective: 0.5 (-1 + 2.5) > 0
    #                              (3.0, -1) outside but PPO would not clip; gradient goes with A
    #                              (0.5, 0) outside, gradient 0
    #                              (1.0, -1) on the spot
    ratios = torch.tensor([1.5, 1.1, 0.5, 3.0, 0.5, 1.0], dtype=torch.float64)
    inputs = PolicyLossInputs(
        log_probs=ratios.log().requires_grad_(),
        old_log_probs=torch.zeros(6, dtype=torch.float64),
        advantages=torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, -1.0], dtype=torch.float64),
        mask=torch.ones(6, dtype=torch.bool),
        rollout_log_probs=torch.tensor([0.0, 0.1, 0.0, 0.0, -0.5, 0.0], dtype=torch.float64),
        entropy=torch.full((6,), 1.5, dtype=torch.float64),
    )
    denominators = LossDenominators(num_tokens=6.0, num_sequences=1.0)
    objective = PolicyObjective(loss=build_policy_loss("cfpo"), aggregation="token_mean")
    numbers = reduced(objective(inputs, denominators).metrics)
    logs = ratios.log()
    assert numbers.pop("actor/loss") == pytest.approx(float(build_policy_loss("cfpo")(inputs).detach().mean()))
    for name in [name for name in numbers if name.startswith(("mismatch/", "actor/ratio_q"))]:
        del numbers[name]  # test_mismatch.py and test_metrics.py
    assert numbers == pytest.approx(
        {
            "actor/clip_fraction": 2 / 6,
            "actor/clip_fraction_positive": 1 / 2,
            "actor/clip_fraction_negative": 1 / 3,
            "actor/outside_trust_region": 4 / 6,
            "actor/ratio_deviation": (0.5 + 0.1 + 0.5 + 2.0 + 0.5 + 0.0) / 6,
            "actor/tv": (0.5 + 0.1 + 0.5 + 2.0 + 0.5 + 0.0) / 12,
            # Sum of ratios 7.6; of their squares 2.25 + 1.21 + 0.25 + 9 + 0.25 + 1.
            "actor/ess": 7.6**2 / (6 * 13.96),
            "actor/zero_gradient_share": 1 / 6,
            "actor/corrective_share": 2 / 6,
            "actor/clamped_share": 0.0,
            "actor/kl_k1": float(-logs.mean()),
            "actor/kl_k3": float((ratios - 1 - logs).mean()),
            "actor/log_ratio_max": math.log(3.0),
            "actor/log_ratio_min": math.log(0.5),
            "actor/entropy": 1.5,
            "rollout/log_prob_diff_mean": 0.1,
            "rollout/log_prob_diff_max": 0.5,
        }
    )


def test_clip_has_zero_gradient_where_cfpo_corrects():
    ratios = torch.tensor([1.5, 0.5, 1.0])
    inputs = PolicyLossInputs(
        ratios.log().requires_grad_(), torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.ones(3, dtype=torch.bool)
    )
    denominators = LossDenominators(num_tokens=3.0, num_sequences=1.0)
    shares = {}
    for name in ("clip", "cfpo"):
        objective = PolicyObjective(loss=build_policy_loss(name), aggregation="token_mean")
        numbers = reduced(objective(inputs, denominators).metrics)
        shares[name] = (numbers["actor/zero_gradient_share"], numbers["actor/corrective_share"])
        assert numbers["actor/clip_fraction"] == pytest.approx(2 / 3)  # counted alike under either loss
    assert shares == {"clip": pytest.approx((2 / 3, 0.0)), "cfpo": pytest.approx((0.0, 2 / 3))}


def test_the_trust_region_of_the_metrics_is_the_losss_own():
    inputs = PolicyLossInputs(
        torch.tensor([1.3, 0.75]).log().requires_grad_(),
        torch.zeros(2),
        torch.tensor([1.0, -1.0]),
        torch.ones(2, dtype=torch.bool),
    )
    denominators = LossDenominators(num_tokens=2.0, num_sequences=1.0)
    for name, knobs, expected in (
        ("cfpo", {}, 1.0),
        ("cfpo", {"epsilon": 0.4}, 0.0),
        ("clip", {"clip_high": 0.5}, 0.5),
        ("dual_clip", {"clip_low": 0.3}, 0.5),
    ):
        objective = PolicyObjective(loss=build_policy_loss(name, **knobs), aggregation="token_mean")
        assert reduced(objective(inputs, denominators).metrics)["actor/clip_fraction"] == expected


def test_clamped_tokens_are_counted_and_extremes_are_unclamped():
    inputs = PolicyLossInputs(
        torch.tensor([30.0, 0.0, 0.0, 0.0]).requires_grad_(),
        torch.zeros(4),
        torch.ones(4),
        torch.ones(4, dtype=torch.bool),
    )
    objective = PolicyObjective(loss=build_policy_loss("cfpo"), aggregation="token_mean")
    numbers = reduced(objective(inputs, LossDenominators(num_tokens=4.0, num_sequences=1.0)).metrics)
    assert numbers["actor/clamped_share"] == 0.25
    assert numbers["actor/zero_gradient_share"] == 0.25
    assert numbers["actor/log_ratio_max"] == 30.0


def test_on_policy_every_ratio_is_one_and_nothing_is_clipped():
    log_probs = -torch.rand(50)
    inputs = PolicyLossInputs(
        log_probs.clone().requires_grad_(), log_probs, torch.randn(50), torch.ones(50, dtype=torch.bool)
    )
    for name in ("clip", "dual_clip", "cfpo"):
        objective = PolicyObjective(loss=build_policy_loss(name), aggregation="token_mean")
        numbers = reduced(objective(inputs, LossDenominators(num_tokens=50.0, num_sequences=1.0)).metrics)
        for metric in ("clip_fraction", "ratio_deviation", "kl_k1", "kl_k3", "log_ratio_max", "log_ratio_min"):
            assert numbers[f"actor/{metric}"] == 0


def test_k3_of_tiny_ratios_is_never_negative():
    log_ratios = torch.full((100,), 1e-8)
    inputs = PolicyLossInputs(
        log_ratios.requires_grad_(), torch.zeros(100), torch.ones(100), torch.ones(100, dtype=torch.bool)
    )
    objective = PolicyObjective(loss=build_policy_loss("cfpo"), aggregation="token_mean")
    numbers = reduced(objective(inputs, LossDenominators(num_tokens=100.0, num_sequences=1.0)).metrics)
    assert numbers["actor/kl_k3"] >= 0


def test_a_micro_batch_without_tokens_takes_part_with_the_same_metric_names():
    inputs, objective = batch().packed(), full_objective(correction=CORRECTION)
    nothing = {name: values[:0] for name, values in inputs.tensors().items()}
    empty = dataclasses.replace(inputs, **nothing, num_sequences=0)
    denominators = LossDenominators(num_tokens=10.0, num_sequences=4.0)
    output = objective(empty, denominators)
    assert float(output.loss.detach()) == 0
    output.loss.backward()
    filled = objective(inputs, denominators).metrics
    assert set(output.metrics) == set(filled)
    sums = MetricSums()
    sums.add(output.metrics)
    sums.add(filled)
    assert sums.reduce() == pytest.approx(reduced(filled))


def test_a_scaled_loss_scales_the_gradient():
    # Megatron multiplies the loss by a scale before the backward pass.
    inputs, objective = batch(), full_objective()
    denominators = LossDenominators.of_mask(inputs.mask)
    _, expected, _, _ = gradients(objective, inputs, denominators)
    log_probs = inputs.log_probs.detach().requires_grad_()
    (objective(dataclasses.replace(inputs, log_probs=log_probs), denominators).loss * 1024).backward()
    torch.testing.assert_close(log_probs.grad, 1024 * expected)


def test_a_loss_may_send_gradient_to_the_entropy():
    inputs = batch()
    objective = PolicyObjective(loss=build_policy_loss("objective_test_entropy"), aggregation="token_mean")
    _, _, for_entropy, _ = gradients(objective, inputs, LossDenominators(num_tokens=10.0, num_sequences=4.0))
    expected = (-inputs.ratio * inputs.advantages / 10).detach()
    torch.testing.assert_close(for_entropy[inputs.mask], expected[inputs.mask])


def test_works_without_gradients_around_it():
    inputs, objective = batch(), full_objective()
    with torch.no_grad():
        output = objective(inputs, LossDenominators.of_mask(inputs.mask))
    assert output.loss.isfinite() and not output.loss.requires_grad


def test_missing_inputs_are_named():
    inputs = dataclasses.replace(batch(), ref_log_probs=None)
    with pytest.raises(BatchError, match="needs ref_log_probs"):
        full_objective()(inputs, LossDenominators.of_mask(inputs.mask))
    assert full_objective().needs == {"ref_log_probs", "entropy"}


def test_a_loss_that_ignores_the_policy_is_refused():
    inputs = batch()
    with pytest.raises(BatchError, match="does not depend on log_probs"):
        PolicyObjective(loss=build_policy_loss("objective_test_constant"))(
            inputs, LossDenominators.of_mask(inputs.mask)
        )


def test_mistakes_are_reported_together():
    with pytest.raises(ConfigError) as error:
        PolicyObjective(loss=build_policy_loss("cfpo"), aggregation="sum", kl_coef=-1.0, kl_estimator="k9")
    assert len(error.value.problems) == 3


# The weights of tokens.


def masked_inputs(mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    zeros = torch.zeros(mask.shape)
    return PolicyLossInputs(zeros, zeros, zeros, mask)


# Responses of 3 and 1 counted tokens; the 5 and 2 are what two micro-batches more hold.
SHORT_MASK = [[1, 1, 1], [1, 0, 0]]
OF_ALL = LossDenominators(num_tokens=5.0, num_sequences=4.0, max_length=8.0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", [[1 / 5, 1 / 5, 1 / 5], [1 / 5, 0, 0]]),
        ("seq_mean_token_sum", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0]]),
        ("seq_mean_token_sum_norm", [[1 / 32, 1 / 32, 1 / 32], [1 / 32, 0, 0]]),
        ("seq_mean_token_mean", [[1 / 12, 1 / 12, 1 / 12], [1 / 4, 0, 0]]),
    ],
)
def test_weights_by_hand(mode, expected):
    torch.testing.assert_close(token_weights(masked_inputs(SHORT_MASK), mode, OF_ALL), torch.tensor(expected))


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_packed_weights_are_the_padded_ones(mode):
    inputs = masked_inputs([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    packed = inputs.packed()
    expected = token_weights(inputs, mode, OF_ALL)[inputs.mask]
    assert torch.equal(token_weights(packed, mode, OF_ALL), expected)


def test_means_are_means():
    # A per-token loss of 7 everywhere has mean 7 in both mean modes.
    inputs, mask = masked_inputs(SHORT_MASK), torch.tensor(SHORT_MASK)
    own = LossDenominators.of_mask(mask)
    assert own == LossDenominators(num_tokens=4.0, num_sequences=2.0, max_length=3.0)
    for mode in ("token_mean", "seq_mean_token_mean"):
        assert float((7 * token_weights(inputs, mode, own)).sum()) == pytest.approx(7.0)


def test_a_response_without_counted_tokens_adds_nothing_and_still_counts():
    # Equation 8 divides by the number of responses: here 2, so the one that counts weighs a half.
    inputs = masked_inputs([[1, 1], [0, 0]])
    weights = token_weights(inputs, "seq_mean_token_mean", LossDenominators.of_mask(inputs.mask))
    assert weights.tolist() == [[0.25, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_an_empty_mini_batch_has_weight_zero(mode):
    inputs = masked_inputs([[0, 0]])
    weights = token_weights(inputs, mode, LossDenominators(num_tokens=0.0, num_sequences=0.0, max_length=2.0))
    assert weights.tolist() == [[0.0, 0.0]]


def test_the_constant_of_dr_grpo_must_be_known():
    with pytest.raises(BatchError, match="max_length"):
        token_weights(
            masked_inputs(SHORT_MASK), "seq_mean_token_sum_norm", LossDenominators(num_tokens=5.0, num_sequences=4.0)
        )


def test_unknown_mode_lists_the_modes():
    with pytest.raises(ConfigError, match="seq_mean_token_mean, token_mean, seq_mean_token_sum"):
        token_weights(masked_inputs(SHORT_MASK), "mean", OF_ALL)
