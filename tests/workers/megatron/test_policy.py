"""The policy's contracts: ratios of exactly 1, ranks without rows, reference, refusal of broken gradients."""

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from megatron.core import parallel_state
from policy_world import Case, build_policy, mini_batch, objective, rows_of_rank

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.errors import BatchError, DispatchError, NumericsError
from cfpo_hybrid.protocol import DataProto
from workers.megatron.build import named_parameters
from workers.megatron.log_probs import Truncation
from workers.megatron.policy import MegatronPolicy


def ratio_metrics(case: Case) -> dict[str, float]:
    policy = build_policy(case)
    batch = rows_of_rank(mini_batch(rows=13), policy)
    batch = batch.with_columns(old_log_probs=policy.log_probs(batch)["old_log_probs"])
    return policy.update(batch, objective(kl_coef=0.0, entropy_coef=0.0))


def ratio_metrics_of(cases: list[Case]) -> list[dict[str, float]]:
    found = []
    for case in cases:
        found.append(ratio_metrics(case))
        parallel_state.destroy_model_parallel()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "cases"),
    [
        (1, [Case(micro_batch_tokens=40), Case(micro_batch_tokens=40, recompute=True)]),
        (
            2,
            [
                Case(tp=2, sequence_parallel=True, micro_batch_tokens=40),
                Case(pp=2, micro_batch_tokens=40),
                Case(),
                Case(ep=2, model={"family": "qwen3_moe", "num_hidden_layers": 2}, micro_batch_tokens=40),
            ],
        ),
    ],
)
def test_one_iteration_and_one_mini_batch_have_ratios_of_exactly_one(world: int, cases: list[Case]) -> None:
    for by_case in run_gloo(world, ratio_metrics_of, cases, timeout=200, check_shapes=True):
        for metrics in by_case:
            if "actor/ratio_deviation" in metrics:  # the last stage answers
                assert metrics["actor/ratio_deviation"] == 0.0
                assert metrics["actor/log_ratio_max"] == 0.0
                assert metrics["actor/clip_fraction"] == 0.0


def on_policy_updates() -> tuple[list[dict[str, float]], list[bool]]:
    """An update with old_log_probs from a pass of their own, one that does without, and one that forgot them."""
    batch, metrics, refused = mini_batch(rows=13).without("old_log_probs"), [], []
    for on_policy, given in ((False, True), (True, False), (False, False)):
        policy = build_policy(Case(micro_batch_tokens=40))
        columns = {"old_log_probs": policy.log_probs(batch)["old_log_probs"]} if given else {}
        try:
            metrics.append(policy.update(batch.with_columns(**columns), objective(), on_policy=on_policy))
            refused.append(False)
        except BatchError:
            refused.append(True)
        parallel_state.destroy_model_parallel()
    return metrics, refused


def test_an_update_on_policy_needs_no_old_log_probs() -> None:
    ((metrics, refused),) = run_gloo(1, on_policy_updates)
    assert refused == [False, False, True]
    assert metrics[0] == metrics[1]  # bit for bit


def updates_by_row_and_by_token() -> list[tuple[dict[str, float], torch.Tensor]]:
    """Metrics and gradient of advantages ``[batch]`` and of the same ones for each token, by two losses."""
    batch, found = mini_batch(rows=13), []
    by_token = batch.with_columns(advantages=batch["advantages"].unsqueeze(1).repeat(1, 12))
    for loss in ("cfpo", "kl_cov"):  # one takes statistics of the mini-batch
        for rows in (batch, by_token):
            policy = build_policy(Case(micro_batch_tokens=40))
            metrics = policy.update(rows, PolicyObjective(loss=build_policy_loss(loss)))
            found.append((metrics, gradient_of(policy)))
            parallel_state.destroy_model_parallel()
    return found


def test_an_advantage_a_row_is_one_for_each_of_its_tokens() -> None:
    (found,) = run_gloo(1, updates_by_row_and_by_token)
    for (metrics, gradient), (metrics_by_token, gradient_by_token) in (found[:2], found[2:]):
        assert metrics == metrics_by_token
        assert torch.equal(gradient, gradient_by_token)
    assert not torch.equal(found[0][1], found[2][1])


def update_with_an_idle_rank() -> tuple[dict[str, float], dict[str, float]]:
    """The same two rows: spread over both ranks, and all on rank 1."""
    batch, found = mini_batch(rows=2), []
    for mine in ([dist.get_rank()], [] if dist.get_rank() == 0 else [0, 1]):
        policy = build_policy(Case(distributed_optimizer=True))
        rows = batch.rows(torch.tensor(mine, dtype=torch.int64))
        rows = rows.with_columns(old_log_probs=policy.log_probs(rows)["old_log_probs"])
        found.append(policy.update(rows, objective()))
        parallel_state.destroy_model_parallel()
    return found[0], found[1]


@pytest.mark.slow
def test_a_rank_without_rows_takes_part() -> None:
    for spread, lumped in run_gloo(2, update_with_an_idle_rank):
        assert lumped == pytest.approx(spread, rel=1e-5, abs=1e-6)


def mini_batches_apart_and_together() -> tuple[torch.Tensor, torch.Tensor]:
    policy = build_policy(Case(micro_batch_tokens=40))
    batch = mini_batch(rows=12).with_columns(mini_batch=torch.arange(12) % 3)
    together = policy.score(batch)
    apart = torch.zeros_like(together)
    for index in range(3):
        rows = torch.nonzero(batch["mini_batch"] == index).flatten()
        apart[rows] = policy.score(batch.rows(rows))
    return together, apart


def test_old_log_probs_of_a_rollout_are_those_of_its_mini_batches_bit_for_bit() -> None:
    together, apart = run_gloo(1, mini_batches_apart_and_together)[0]
    assert torch.equal(together, apart)


def gradient_of(policy: MegatronPolicy) -> torch.Tensor:
    """The last gradient as one vector, clipped, which leaves its direction alone."""
    named = named_parameters(policy.chunks)
    gradients = [parameter.main_grad for _, parameter in named]  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat([gradient.flatten() for gradient in gradients])


def reference_and_policy_after_a_step() -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """Log-probs by the starting weights in three ways, those after an update, and whether a missing reference is refused."""
    truncation = Truncation(top_p=0.5, top_k=-1)
    policy, batch = build_policy(Case(grad_cosine=True), weight_lag=1, truncation=truncation), mini_batch()
    try:
        policy.ref_log_probs(batch)
        refused = False
    except DispatchError:
        refused = True
    before = policy.score(batch)
    policy.build_reference()
    policy.lagged.remember()
    metrics, gradients = [], []
    for seed in range(3):
        metrics.append(policy.update(mini_batch(seed=seed), objective()))
        gradients.append(gradient_of(policy))
    cosines = [float(torch.cosine_similarity(*pair, dim=0)) for pair in itertools.pairwise(gradients)]
    assert "actor/grad_cosine" not in metrics[0]
    assert [each["actor/grad_cosine"] for each in metrics[1:]] == pytest.approx(cosines, abs=1e-5)
    assert abs(cosines[0] - cosines[1]) > 1e-3
    answer = policy.log_probs(batch)
    real = torch.arange(12) < batch["response_lengths"].unsqueeze(1)
    # Between a half and all of it, and the update can read it.
    assert ((answer["kept_log_mass"] >= math.log(0.5) - 1e-5) & (answer["kept_log_mass"] < 0))[real].all()
    assert "mismatch/transform_rms" in policy.update(
        batch.with_columns(kept_log_mass=answer["kept_log_mass"]), objective()
    )
    of_old = [before, policy.ref_log_probs(batch)["ref_log_probs"], answer["old_log_probs"]]
    return of_old, policy.score(batch), refused


def test_reference_and_lagged_weights_are_those_that_were_kept() -> None:
    """A rollout that lags one step behind: old log-probs are those of the weights that sampled."""
    (before, reference, lagged), after, refused = run_gloo(1, reference_and_policy_after_a_step)[0]
    assert refused
    assert torch.equal(reference, before)
    assert torch.equal(lagged, before)
    assert not torch.equal(after, before)


def broken_update() -> tuple[bool, bool]:
    policy, batch = build_policy(Case()), mini_batch()
    weights = {name: tensor.clone() for name, tensor in policy.parameters_by_name().items()}
    broken = DataProto({name: batch[name] for name in batch.column_names if name != "advantages"})
    broken = broken.with_columns(advantages=torch.full((len(batch),), math.inf))
    try:
        policy.update(broken, objective())
        refused = False
    except NumericsError:
        refused = True
    now = policy.parameters_by_name()
    return refused, all(torch.equal(now[name], weight) for name, weight in weights.items())


def test_a_broken_gradient_stops_before_the_weights_change() -> None:
    assert run_gloo(1, broken_update) == [(True, True)]
