"""Mismatch of the engines: its parts by hand, the weights that correct for it, and noise of a known size."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from cfpo_hybrid import BatchError, ConfigError, PolicyLossInputs, build_policy_loss
from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.mismatch import RolloutCorrection, log_prob_noise, mismatch_metrics
from cfpo_hybrid.algorithms.objective import LossDenominators, PolicyObjective

NAN = float("nan")
SEEDS = torch.randint(2**63 - 1, (500,), generator=torch.Generator().manual_seed(0))
# pi_old / pi_rollout of three responses of 2, 1 and 3 tokens
RATIOS = torch.tensor([[4.0, 0.25, NAN], [3.0, NAN, NAN], [1.1, 0.9, 0.1]], dtype=torch.float64)
MASK = ~RATIOS.isnan()


def inputs():
    """Old log-probs are 0, so that those of the rollout are -log(ratio)."""
    zeros = torch.zeros_like(RATIOS)
    drift = torch.where(MASK, torch.full_like(zeros, 0.2), NAN)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return PolicyLossInputs(
        drift.requires_grad_(), zeros, advantages, MASK, rollout_log_probs=-RATIOS.log(), ref_log_probs=zeros
    )


def reduced(metrics):
    sums = MetricSums()
    sums.add(metrics)
    return sums.reduce()


TOKEN_WEIGHTS = {
    "truncate": [[2.0, 0.25], [2.0], [1.1, 0.9, 0.1]],
    "mask": [[0.0, 0.25], [0.0], [1.1, 0.9, 0.0]],
}


@pytest.mark.parametrize("mode", TOKEN_WEIGHTS)
def test_token_weights(mode):
    # Bounds 0.2 and 2: "mask" drops 4 and 3 as too large and 0.1 as too small.
    correction = RolloutCorrection(mode=mode, lower=0.2 if mode == "mask" else 0.0)
    weights, metrics = correction.weigh(inputs())
    wanted = torch.tensor([weight for row in TOKEN_WEIGHTS[mode] for weight in row], dtype=torch.float64)
    torch.testing.assert_close(weights[MASK], wanted)
    assert not weights.requires_grad
    found = reduced(metrics)
    assert found.pop(f"correction/{mode}d_share".replace("maskd", "masked")) == (3 / 6 if mode == "mask" else 2 / 6)
    assert found == pytest.approx(
        {
            "correction/weight_mean": float(wanted.mean()),
            "correction/ess": float(wanted.sum() ** 2 / (6 * wanted.square().sum())),
        }
    )


def test_sequence_weights_are_products():
    # Products 1, 3 and 0.099; "truncate" at 2.
    weights, _ = RolloutCorrection(mode="truncate", level="sequence").weigh(inputs())
    torch.testing.assert_close(weights[MASK], torch.tensor([1, 1, 2, 0.099, 0.099, 0.099], dtype=torch.float64))


def test_rejection_goes_by_the_geometric_mean():
    # Geometric means 1, 3 and 0.099^(1/3) = 0.4626.
    correction = RolloutCorrection(reject_lower=0.5, reject_upper=2.0)
    weights, metrics = correction.weigh(inputs())
    assert weights[MASK].tolist() == [1, 1, 0, 0, 0, 0]
    found = reduced(metrics)
    assert found["correction/rejected_share"] == pytest.approx(2 / 3)  # of responses, not tokens
    assert found["correction/weight_mean"] == pytest.approx(2 / 6)
    kept, _ = RolloutCorrection(reject_lower=0.46, reject_upper=3.1).weigh(inputs())
    assert kept[MASK].tolist() == [1] * 6


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["off", "truncate", "mask"])
def test_packed_equals_padded(mode, level):
    correction = RolloutCorrection(mode=mode, level=level, reject_lower=0.5)
    padded, packed = (correction.weigh(each) for each in (inputs(), inputs().packed()))
    torch.testing.assert_close(packed[0], padded[0][MASK])
    assert reduced(packed[1]) == pytest.approx(reduced(padded[1]))


def test_only_the_policy_loss_is_weighted_and_denominators_stay():
    batch, denominators = inputs(), LossDenominators(num_tokens=6.0, num_sequences=3.0)

    def outcome(**options):
        leaf = dataclasses.replace(batch, log_probs=batch.log_probs.detach().requires_grad_())
        objective = PolicyObjective(loss=build_policy_loss("policy_gradient"), aggregation="token_mean", **options)
        output = objective(leaf, denominators)
        (gradient,) = torch.autograd.grad(output.loss, leaf.log_probs)
        return gradient[MASK], reduced(output.metrics)

    correction = RolloutCorrection(mode="mask", lower=0.2)
    plain, _ = outcome()
    corrected, metrics = outcome(correction=correction)
    # Of plain REINFORCE, -A / 6 a token, the weights are all that changes.
    torch.testing.assert_close(corrected, plain * correction.weigh(batch)[0][MASK])
    assert metrics["actor/zero_gradient_share"] == 3 / 6
    with_kl, _ = outcome(correction=correction, kl_coef=0.1, kl_estimator="k2")
    torch.testing.assert_close(with_kl - corrected, torch.full((6,), 0.1 * 0.2 / 6, dtype=torch.float64))


def test_mismatch_by_hand():
    # numeric = log of the ratios, drift = 0.2 throughout
    numeric = RATIOS[MASK].log()
    total = numeric + 0.2
    found = reduced(mismatch_metrics(inputs()))
    assert found == pytest.approx(
        {
            "mismatch/numeric_mean": float(numeric.mean()),
            "mismatch/drift_mean": 0.2,
            "mismatch/total_mean": float(total.mean()),
            "mismatch/numeric_rms": float(numeric.square().mean().sqrt()),
            "mismatch/drift_rms": 0.2,
            "mismatch/total_rms": float(total.square().mean().sqrt()),
            "rollout/log_prob_diff_mean": float(numeric.abs().mean()),
            "rollout/log_prob_diff_max": math.log(10),
        }
    )
    assert mismatch_metrics(dataclasses.replace(inputs(), rollout_log_probs=None)) == {}


def test_truncated_sampling_is_told_from_numeric_mismatch():
    # Sampling kept 0.9 of the probability: of log pi_old - log pi_rollout that much is no disagreement of the engines.
    kept = torch.where(MASK, torch.full_like(RATIOS, math.log(0.9)), NAN)
    plain = reduced(mismatch_metrics(inputs()))
    found = reduced(mismatch_metrics(dataclasses.replace(inputs(), kept_log_mass=kept)))
    assert found["mismatch/transform_mean"] == pytest.approx(math.log(0.9))
    assert found["mismatch/numeric_mean"] == pytest.approx(plain["mismatch/numeric_mean"] - math.log(0.9))
    assert found["mismatch/total_mean"] == pytest.approx(plain["mismatch/total_mean"])
    assert found["mismatch/total_rms"] == pytest.approx(plain["mismatch/total_rms"])
    assert found["rollout/log_prob_diff_max"] == pytest.approx(math.log(10) + math.log(0.9))


def test_what_makes_no_sense_is_refused():
    loss = build_policy_loss("cfpo")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"mode": "tis"}, "use one of off, truncate, mask"),
        ({"level": "word"}, "use one of token, sequence"),
        ({"mode": "truncate", "lower": 0.5}, "does nothing with mode=truncate"),
        ({"mode": "mask", "lower": 2.0}, "must be below upper"),
        ({"reject_lower": 1.2, "reject_upper": 1.1}, "must be below reject_upper"),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            PolicyObjective(loss=loss, correction=RolloutCorrection(**options))
    objective = PolicyObjective(loss=loss, correction=RolloutCorrection(reject_upper=2.0))
    assert objective.needs == {"rollout_log_probs"}
    with pytest.raises(BatchError, match="needs rollout_log_probs"):
        objective(dataclasses.replace(inputs(), rollout_log_probs=None), LossDenominators.of_mask(MASK))


def test_noise_is_gaussian_of_that_size():
    noise = log_prob_noise(SEEDS, 200, sigma=0.3).double() / 0.3
    # 100,000 draws: the standard errors of these moments are 0.003, 0.005, 0.008 and 0.03.
    assert abs(noise.mean()) < 0.015
    assert abs(noise.square().mean() - 1) < 0.025
    assert abs(noise.pow(3).mean()) < 0.05
    assert abs(noise.pow(4).mean() - 3) < 0.15
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.015  # neighbours
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.015  # rows


def test_noise_depends_on_seed_and_position_alone():
    wide = log_prob_noise(SEEDS[:8], 20, sigma=0.1)
    assert torch.equal(log_prob_noise(SEEDS[:8].flip(0), 12, sigma=0.1).flip(0), wide[:, :12])
    assert torch.equal(log_prob_noise(SEEDS[3:4], 20, sigma=0.1)[0], wide[3])
    assert len(wide.unique()) == wide.numel()
