"""The losses of other papers by hand: values and gradients on a few tokens."""

import dataclasses
import math

import pytest
import torch

from cfpo_hybrid import BatchError, ConfigError, PolicyLossInputs, build_policy_loss
from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens
from cfpo_hybrid.algorithms.policy_loss.covariance import CovarianceMeans, token_draw
from cfpo_hybrid.algorithms.policy_loss.dppo import binary_kl

RATIOS = [0.5, 0.9, 1.0, 1.1, 1.5, 4.0]


RARE = math.log(0.1)


def inputs_of(ratios, advantages, old=RARE, **more):
    """Tokens of these ratios; one response a row when they are nested."""
    ratios = torch.tensor(ratios, dtype=torch.float64)
    old = torch.as_tensor(old, dtype=torch.float64).expand(ratios.shape)
    return PolicyLossInputs(
        log_probs=(old + ratios.log()).requires_grad_(),
        old_log_probs=old,
        advantages=torch.as_tensor(advantages, dtype=torch.float64).expand(ratios.shape),
        mask=torch.ones(ratios.shape, dtype=torch.bool),
        **more,
    )


def evaluate(name, inputs, **knobs):
    inputs = dataclasses.replace(inputs, log_probs=inputs.log_probs.detach().requires_grad_())
    loss = build_policy_loss(name, **knobs)(inputs)
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.log_probs)
    return loss.detach().tolist(), gradient.tolist()


@pytest.mark.parametrize("advantage", [1.5, -2.0])
@pytest.mark.parametrize(
    ("alias", "name", "knobs"),
    [("spo", "cfpo", {"epsilon": 0.2}), ("clip_higher", "clip", {"clip_low": 0.2, "clip_high": 0.28})],
)
def test_presets_are_what_they_are_presets_of(alias, name, knobs, advantage):
    inputs = inputs_of(RATIOS, advantage)
    assert evaluate(alias, inputs) == evaluate(name, inputs, **knobs)


def test_policy_gradient_ignores_the_ratio_unless_it_is_weighted():
    inputs = inputs_of([0.5, 4.0], 2.0)
    # -A log pi: log 0.05 = -2.9957, log 0.4 = -0.9163; gradient -A
    loss, gradient = evaluate("policy_gradient", inputs)
    assert loss == pytest.approx([5.9915, 1.8326], abs=1e-4)
    assert gradient == pytest.approx([-2.0, -2.0])
    # -A r, gradient -A r
    loss, gradient = evaluate("policy_gradient", inputs, importance_weighted=True)
    assert loss == pytest.approx([-1.0, -8.0]) and gradient == pytest.approx([-1.0, -8.0])


def test_kl_penalty_by_hand():
    # epsilon 0.5, A = 2, r = 2: w / epsilon = 4, r - 1 - log r = 0.306853; 4 * 0.306853 - 4 = -2.772589
    #   gradient of the loss: w (r - 1) / epsilon - r A = 4 - 4 = 0: the best ratio is 1 / (1 - epsilon) = 2
    # A = -1, r = 2 / 3: best ratio 1 / (1 + 0.5): gradient 2 * (-1/3) + 2/3 = 0
    loss, gradient = evaluate("kl_penalty", inputs_of([2.0, 2 / 3], torch.tensor([2.0, -1.0])), epsilon=0.5)
    assert loss[0] == pytest.approx(-2.772589, abs=1e-6)
    assert gradient == pytest.approx([0.0, 0.0], abs=1e-12)
    # Not weighted: the penalty is 1 / epsilon, A = 2: 2 * 0.306853 - 4
    loss, _ = evaluate("kl_penalty", inputs_of([2.0], 2.0), epsilon=0.5, advantage_weighted=False)
    assert loss == pytest.approx([-3.386294], abs=1e-6)


def test_kl_penalty_and_cfpo_agree_near_one_and_part_beyond():
    near = inputs_of([0.999, 1.001], 1.0)
    assert evaluate("kl_penalty", near)[1] == pytest.approx(evaluate("cfpo", near)[1], rel=1e-2)
    # At r = 4 and A = 1: r A - (r - 1) / 0.2 = -11, and r (1 - 3 / 0.2) = -56
    far = inputs_of([4.0], 1.0)
    assert evaluate("kl_penalty", far)[1] == pytest.approx([11.0])
    assert evaluate("cfpo", far)[1] == pytest.approx([56.0])


def test_gspo_by_hand():
    # Responses of ratios (2, 0.5): s = 1, inside; (2, 2): s = 2, A = 3 clipped at 1.1; (0.5, 0.5): s = 0.5, A = 3 not.
    inputs = inputs_of([[2.0, 0.5], [2.0, 2.0], [0.5, 0.5]], 3.0)
    loss, gradient = evaluate("gspo", inputs, clip_low=0.1, clip_high=0.1)
    assert loss == [pytest.approx([-3.0, -3.0]), pytest.approx([-3.3, -3.3]), pytest.approx([-1.5, -1.5])]
    # Each token moves s by s / length, and each of the two tokens carries s: -A s in all.
    assert gradient == [pytest.approx([-3.0, -3.0]), [0.0, 0.0], pytest.approx([-1.5, -1.5])]


def test_gspo_counts_the_masked_out_tokens_nowhere():
    inputs = inputs_of([[2.0, 2.0]], 1.0)
    partly = PolicyLossInputs(inputs.log_probs, inputs.old_log_probs, inputs.advantages, torch.tensor([[True, False]]))
    loss, gradient = evaluate("gspo", partly, clip_low=0.5, clip_high=2.0)
    assert loss == [pytest.approx([-2.0, 0.0])] and gradient == [pytest.approx([-2.0, 0.0])]


def test_gmpo_by_hand():
    # A = 1, bounds +-log 2. Ratios (4, 1): 4 is clipped to 2, s = sqrt(2); (0.25, 1): below is free, s = 0.5.
    # A = -1 the other way round: (4, 1) is free, s = 2; (0.25, 1) is clipped to 0.5, s = sqrt(0.5).
    ratios, bounds = [[4.0, 1.0], [0.25, 1.0]], {"log_clip_low": math.log(2), "log_clip_high": math.log(2)}
    loss, gradient = evaluate("gmpo", inputs_of(ratios, 1.0), **bounds)
    assert loss == [pytest.approx([-math.sqrt(2)] * 2), pytest.approx([-0.5] * 2)]
    # The clipped token is still, its neighbour is not.
    assert gradient == [pytest.approx([0.0, -math.sqrt(2)]), pytest.approx([-0.5, -0.5])]
    loss, gradient = evaluate("gmpo", inputs_of(ratios, -1.0), **bounds)
    assert loss == [pytest.approx([2.0] * 2), pytest.approx([math.sqrt(0.5)] * 2)]
    assert gradient == [pytest.approx([2.0, 2.0]), pytest.approx([0.0, math.sqrt(0.5)])]


def test_cispo_by_hand():
    # Weights 0.5 and 4 bounded by [0.8, 3]: the gradient is -w A, and never 0.
    loss, gradient = evaluate("cispo", inputs_of([0.5, 4.0], 2.0), clip_low=0.2, clip_high=2.0)
    assert gradient == pytest.approx([-1.6, -6.0])
    assert loss == pytest.approx([-1.6 * math.log(0.05), -6.0 * math.log(0.4)])
    # By default there is no lower bound, and an upper one of 5.
    assert evaluate("cispo", inputs_of([0.01, 9.0], 1.0))[1] == pytest.approx([-0.01, -5.0])


@pytest.mark.parametrize(("advantage", "tau"), [(1.0, 2.0), (-1.0, 3.0)])
def test_sapo_by_hand(advantage, tau):
    # The gradient is 4 p (1 - p) r (-A) with p = sigmoid(tau (r - 1)).
    loss, gradient = evaluate("sapo", inputs_of(RATIOS, advantage), tau_positive=2.0, tau_negative=3.0)
    gates = [1 / (1 + math.exp(-tau * (ratio - 1))) for ratio in RATIOS]
    assert loss == pytest.approx([-4 / tau * gate * advantage for gate in gates])
    slopes = [4 * gate * (1 - gate) for gate in gates]
    assert gradient == pytest.approx([-slope * ratio * advantage for slope, ratio in zip(slopes, RATIOS, strict=True)])


def test_dppo_tv_masks_by_probability():
    # delta 0.15. Old probability 0.1 and r = 2: moved by 0.1, kept; r = 4: moved by 0.3, masked for A > 0 alone.
    # Old probability 0.8 and r = 0.5: moved by -0.4, masked for A < 0 alone, though r = 0.5 at 0.1 is not.
    old, ratios = torch.tensor([0.1, 0.1, 0.8, 0.1]).double().log(), [2.0, 4.0, 0.5, 0.5]
    _, gradient = evaluate("dppo_tv", inputs_of(ratios, 1.0, old), delta=0.15)
    assert gradient == pytest.approx([-2.0, 0.0, -0.5, -0.5])
    _, gradient = evaluate("dppo_tv", inputs_of(ratios, -1.0, old), delta=0.15)
    assert gradient == pytest.approx([2.0, 4.0, 0.0, 0.5])


def test_dppo_kl_masks_by_the_binary_divergence():
    # p = 0.5, q = 0.25: 0.5 log 2 + 0.5 log(0.5 / 0.75) = 0.5 (0.693147 - 0.405465) = 0.143841
    inputs = inputs_of([0.5], -1.0, math.log(0.5))
    divergence = binary_kl(inputs.old_log_probs, inputs.log_probs.detach())
    assert float(divergence) == pytest.approx(0.143841, abs=1e-6)
    assert evaluate("dppo_kl", inputs, delta=0.144)[1] == pytest.approx([0.5])
    assert evaluate("dppo_kl", inputs, delta=0.143)[1] == [0.0]


def test_the_binary_divergence_keeps_its_digits_for_sure_tokens():
    # p = 1 - 1e-9, q = 1 - 1e-6 in fp32: about q' - p' + p' log(p' / q') = 1e-6 - 1e-9 - 6.9e-9 with p' = 1 - p
    old, new = torch.tensor([-1e-9]), torch.tensor([-1e-6])
    assert float(binary_kl(old, new)) == pytest.approx(9.92e-7, rel=1e-3)
    assert float(binary_kl(torch.tensor([0.0]), torch.tensor([0.0]))) == 0


def test_drpo_by_hand():
    # delta 0.2, pi_old 0.1, r = 3: pi moved by 0.2, the best for A > 0: r A (1 - 0.2 / 0.2) = 0.
    #   loss: 2 / 0.4 * 0.1 * 4 - 3 * 2 = -4;   at r = 4: gradient of the loss -8 (1 - 0.3 / 0.2) = 4
    loss, gradient = evaluate("drpo", inputs_of([3.0, 4.0], 2.0), delta=0.2)
    assert loss[0] == pytest.approx(-4.0)
    assert gradient == pytest.approx([0.0, 4.0])
    # CFPO, whose penalty is not weighed, is at its best at r = 1.2 and pulls back twenty times as hard.
    assert evaluate("cfpo", inputs_of([4.0], 2.0))[1] == pytest.approx([112.0])


def statistics_inputs(name, **knobs):
    """Five tokens of log pi_old -1 ... -5 and advantages 1 ... -1, all of ratio 1.5."""
    old = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], dtype=torch.float64)
    inputs = inputs_of([1.5] * 5, torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0]), old)
    tokens = MiniBatchTokens.of(inputs.old_log_probs, inputs.advantages, inputs.mask)
    statistics = build_policy_loss(name, **knobs).statistics(tokens)
    return PolicyLossInputs(
        inputs.log_probs, inputs.old_log_probs, inputs.advantages, inputs.mask, statistics=statistics
    )


def test_covariance_by_hand():
    # Means -3 and 0: the covariances are 2 * 1, 1 * 0.5, 0, -1 * -0.5, -2 * -1.
    inputs = statistics_inputs("kl_cov")
    means = inputs.statistics.means
    assert means == CovarianceMeans(log_prob=-3.0, advantage=0.0)
    assert means.covariance(inputs.old_log_probs, inputs.advantages).tolist() == [2.0, 0.5, 0.0, 0.5, 2.0]


def test_kl_cov_penalises_the_highest_covariances():
    # ratio 0.4 of 5 tokens: the two of covariance 2. Their gradient is kl_coef - r A, that of the others -r A.
    inputs = statistics_inputs("kl_cov", ratio=0.4, kl_coef=3.0)
    assert inputs.statistics.threshold == 2.0
    loss, gradient = evaluate("kl_cov", inputs, ratio=0.4, kl_coef=3.0)
    assert loss == pytest.approx([-1.5 + 3 * math.log(1.5), -0.75, 0.0, 0.75, 1.5 + 3 * math.log(1.5)])
    assert gradient == pytest.approx([1.5, -0.75, 0.0, 0.75, 4.5])
    # One token at least: both of covariance 2, since they tie.
    assert statistics_inputs("kl_cov", ratio=1e-9).statistics.threshold == 2.0


def test_clip_cov_leaves_out_a_share_of_its_band():
    # The band (0.1, 1) holds two tokens of five; ratio 0.2 is one of them: each is left out with probability 1/2.
    knobs = {"ratio": 0.2, "covariance_low": 0.1, "covariance_high": 1.0, "clip_high": 1.0}
    inputs = statistics_inputs("clip_cov", **knobs)
    draws = token_draw(inputs.old_log_probs, inputs.advantages)
    dropped = 1 if draws[1] < draws[3] else 3
    assert inputs.statistics.largest_draw == float(draws[dropped])
    _, gradient = evaluate("clip_cov", inputs, **knobs)
    expected = [-1.5, -0.75, 0.0, 0.75, 1.5]
    expected[dropped] = 0.0
    assert gradient == pytest.approx(expected)
    # One token at least, and never more than the band holds.
    for ratio, number in ((1e-6, 1), (0.4, 2), (1.0, 2)):
        few = statistics_inputs("clip_cov", **knobs | {"ratio": ratio})
        _, gradient = evaluate("clip_cov", few, **knobs | {"ratio": ratio})
        assert sum(value == 0 for value in gradient) == number + 1  # and the one of A = 0


def independent_clip_cov(old, new, advantages, draws, *, ratio, low, high, clip):
    """Clip-Cov token by token, as the authors' code has it but for its random numbers: the losses, and who is dropped."""
    count, mean_log_prob, mean_advantage = len(old), sum(old) / len(old), sum(advantages) / len(old)
    losses, candidates = [], []
    for token, (before, after, advantage) in enumerate(zip(old, new, advantages, strict=True)):
        r = math.exp(after - before)
        plain, bounded = -advantage * r, -advantage * min(max(r, 1 - clip), 1 + clip)
        losses.append(max(plain, bounded))
        if low < (before - mean_log_prob) * (advantage - mean_advantage) < high and not bounded > plain:
            candidates.append(token)
    dropped = sorted(candidates, key=lambda token: draws[token])[: max(int(ratio * count + 1e-9), 1)]
    return [0.0 if token in dropped else loss for token, loss in enumerate(losses)], dropped


@pytest.mark.parametrize("ratio", [1e-4, 0.02, 0.29, 1.0])
def test_clip_cov_is_that_of_an_independent_reference(ratio: float):
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(100, generator=generator, dtype=torch.float64)
    advantages = torch.randn(100, generator=generator, dtype=torch.float64)
    knobs = {"ratio": ratio, "covariance_low": 0.2, "covariance_high": 2.0}
    loss = build_policy_loss("clip_cov", **knobs)
    mask = torch.ones(100, dtype=torch.bool)
    statistics = loss.statistics(MiniBatchTokens.of(old, advantages, mask))
    draws = token_draw(old, advantages).tolist()
    settings = {"ratio": ratio, "low": 0.2, "high": 2.0, "clip": 0.2}

    found = loss(PolicyLossInputs(old.clone(), old, advantages, mask, statistics=statistics)).tolist()
    expected, at_first = independent_clip_cov(old.tolist(), old.tolist(), advantages.tolist(), draws, **settings)
    assert found == pytest.approx(expected)

    # Later some tokens are clipped: they keep the value of the clip, and nothing is dropped but what was drawn.
    new = old + 0.5 * torch.randn(100, generator=generator, dtype=torch.float64)
    found = loss(PolicyLossInputs(new, old, advantages, mask, statistics=statistics)).tolist()
    none = settings | {"low": 1e9, "high": 2e9}
    kept, _ = independent_clip_cov(old.tolist(), new.tolist(), advantages.tolist(), draws, **none)
    surrogate = (-advantages * (new - old).exp()).tolist()
    clipped = [plain < value for plain, value in zip(surrogate, kept, strict=True)]
    assert any(clipped[token] for token in at_first) or ratio < 0.29
    assert found == pytest.approx([0.0 if t in at_first and not clipped[t] else kept[t] for t in range(100)])


def test_the_draws_of_tokens_look_uniform_and_are_their_own():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(20_000, generator=generator)
    draws = token_draw(old, torch.ones(20_000))
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    # The standard deviation of a mean of 20 000 uniform draws is 0.002, of a count of one tenth 42.
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert (counts - 2000).abs().max() < 200
    some = torch.tensor([7, 19_999, 3])
    again = token_draw(old[some], torch.ones(3))
    assert torch.equal(again, draws[some])


def test_statistics_must_be_there():
    with pytest.raises(BatchError, match="needs statistics of the mini-batch"):
        evaluate("kl_cov", inputs_of([1.0], 1.0))


def test_mini_batch_tokens_answer_for_all_ranks():
    # The other rank holds advantages 5 and 1, and says so whatever it is asked for.
    mine = torch.tensor([1.0, 2.0, 6.0])

    def gather_with(other):
        return lambda vector: torch.stack([vector, torch.tensor(other, dtype=vector.dtype)])

    def tokens(other):
        return MiniBatchTokens(old_log_probs=-mine.double(), advantages=mine.double(), gather=gather_with(other))

    assert tokens([6.0, 2.0]).mean(mine) == 15 / 5
    assert tokens([2.0]).count() == 5
    assert tokens([1.0]).count(mine > 1) == 3
    assert tokens([5.0, 1.0]).nth_largest(mine, 2) == 5.0
    assert tokens([5.0, 1.0, -math.inf, -math.inf, -math.inf, -math.inf]).nth_largest(mine, 6) == -math.inf


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("clip_cov", {"covariance_low": 6.0}, "covariance_high"),
        ("clip_cov", {"ratio": 1.5}, "share of the tokens"),
        ("clip_cov", {"clip_low": 0.0}, "clip_low"),
        ("clip_higher", {"clip_high": 0.1}, "larger than clip_low"),
        ("cispo", {"clip_low": 1.5}, "clip_low"),
        ("dppo_tv", {"delta": 1.5}, "probabilities"),
        ("dppo_kl", {"delta": 0.0}, "nats"),
        ("drpo", {"delta": -0.1}, "probabilities"),
        ("gmpo", {"log_clip_low": 0.0}, "log_clip_low"),
        ("gspo", {"clip_high": -1.0}, "clip_high"),
        ("kl_cov", {"ratio": 0.0}, "share of the tokens"),
        ("kl_cov", {"kl_coef": -1.0}, "kl_coef"),
        ("kl_penalty", {"epsilon": 0.0}, "epsilon"),
        ("sapo", {"tau_negative": 0.0}, "tau_negative"),
        ("spo", {"epsilon": math.inf}, "epsilon"),
    ],
)
def test_knobs_are_checked(name, knobs, message):
    with pytest.raises(ConfigError, match=message):
        build_policy_loss(name, **knobs)
