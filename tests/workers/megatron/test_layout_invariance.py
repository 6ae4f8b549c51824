"""Whatever the layout and the micro-batch split, the same mini-batch gives the same loss, gradient norm and weights.

What all are compared with computes the prompt of every row by itself. Advantages are one a row in the first step and one
a token in the second.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gloo import run_gloo
from megatron.core import parallel_state
from policy_world import Case, Weights, build_policy, mini_batch, objective, rows_of_rank, whole_weights
from tiny_model import checkpoint_tensors, tiny_model

from cfpo_hybrid.algorithms.mismatch import RolloutCorrection
from cfpo_hybrid.resharding.shard_spec import ShardSpec

TIED = {"tie_word_embeddings": True}
LLAMA = {"family": "llama"}
# num_key_value_heads=1 with tp=2: a query group is split over ranks, and Megatron gathers it.
ONE_GROUP = {"num_key_value_heads": 1}
QWEN3 = {"family": "qwen3", "num_hidden_layers": 2}
MIXTURE = {"family": "qwen3_moe", "num_hidden_layers": 2}

CASES: dict[int, dict[str, Case]] = {
    1: {
        "reference": Case(share_prompts=False),
        "shared prompts": Case(),
        "one row a micro-batch": Case(micro_batch_tokens=1),
        "distributed optimizer": Case(distributed_optimizer=True, micro_batch_tokens=30),
        "recomputed activations": Case(recompute=True),
        "tied": Case(model=TIED, micro_batch_tokens=30, share_prompts=False),
        "llama": Case(model=LLAMA, micro_batch_tokens=30, share_prompts=False),
        "one group": Case(model=ONE_GROUP, share_prompts=False),
        "qwen3": Case(model=QWEN3, share_prompts=False),
        "mixture": Case(model=MIXTURE, micro_batch_tokens=30, share_prompts=False),
    },
    2: {
        "dp": Case(micro_batch_tokens=20),
        "dp, distributed optimizer": Case(distributed_optimizer=True),
        "tp": Case(tp=2, micro_batch_tokens=30),
        "tp, sequence parallel": Case(tp=2, sequence_parallel=True, micro_batch_tokens=30),
        "tp, sequence parallel, recomputed": Case(tp=2, sequence_parallel=True, recompute=True),
        "pp": Case(pp=2, micro_batch_tokens=20),
        "tied, pp in chunks": Case(pp=2, chunks=2, model=TIED, distributed_optimizer=True, micro_batch_tokens=20),
        "pp, uneven stages": Case(pp=2, first_stage_layers=1, distributed_optimizer=True, micro_batch_tokens=1),
        "tied, pp": Case(pp=2, model=TIED, micro_batch_tokens=30),
        "tied, tp": Case(tp=2, model=TIED),
        "llama, tp, sequence parallel": Case(tp=2, sequence_parallel=True, model=LLAMA),
        "one group, tp": Case(tp=2, model=ONE_GROUP),
        "qwen3, tp": Case(tp=2, model=QWEN3, micro_batch_tokens=30),
        "qwen3, tp, sequence parallel": Case(tp=2, sequence_parallel=True, model=QWEN3),
        "mixture, dp": Case(model=MIXTURE, distributed_optimizer=True, micro_batch_tokens=20),
        "mixture, ep": Case(ep=2, model=MIXTURE, micro_batch_tokens=20),
        "mixture, ep, distributed optimizer": Case(ep=2, model=MIXTURE, distributed_optimizer=True, recompute=True),
        "mixture, tp": Case(tp=2, sequence_parallel=True, model=MIXTURE, micro_batch_tokens=30),
        "mixture, tp, ep": Case(tp=2, ep=2, sequence_parallel=True, model=MIXTURE, distributed_optimizer=True),
    },
    4: {
        "tp, pp, sequence parallel": Case(tp=2, pp=2, sequence_parallel=True, micro_batch_tokens=20),
        "tp, dp, distributed optimizer": Case(tp=2, distributed_optimizer=True, micro_batch_tokens=20),
        "tied, pp in chunks, dp, distributed optimizer": Case(pp=2, chunks=2, distributed_optimizer=True, model=TIED),
        "mixture, tp, dp, ep over both": Case(
            tp=2, ep=4, sequence_parallel=True, model=MIXTURE, distributed_optimizer=True, micro_batch_tokens=1
        ),
        "mixture, pp, ep": Case(pp=2, ep=2, model=MIXTURE, micro_batch_tokens=20),
        "mixture, dp, ep of half": Case(ep=2, model=MIXTURE, distributed_optimizer=True, micro_batch_tokens=20),
    },
}
# Old and rollout log-probs differ by 0.1 nats a token: some weights are truncated, a response is rejected.
CORRECTION = RolloutCorrection(mode="truncate", upper=1.1, reject_lower=0.95)
# Of the rollout. At 0.7 the second gradient norm is thirty times as large, and an ulp between the weights after the first
# step alone can move it by more than 1e-5.
TEMPERATURE = 2.0
NAMES = [name for cases in CASES.values() for name in cases if name != "reference"]


@dataclass(frozen=True)
class Run:
    """What one rank saw of two optimizer steps."""

    specs: list[ShardSpec]
    parameters: Weights
    log_probs: torch.Tensor
    metrics: list[dict[str, float]]
    is_last_stage: bool


def run_cases(cases: dict[str, Case]) -> dict[str, Run]:
    """Cases of one layout follow each other in the same process groups, as the runs of a study do."""
    runs, layout = {}, None
    for name, case in cases.items():
        if layout not in (None, (case.tp, case.pp, case.ep)):
            parallel_state.destroy_model_parallel()
        layout = case.tp, case.pp, case.ep
        policy = build_policy(replace(case, grad_cosine=True), temperature=TEMPERATURE)
        batches = [mini_batch(seed=0), mini_batch(seed=1, by_token=True)]
        if not case.share_prompts:
            batches = [batch.without("group_ids") for batch in batches]
        score = policy.score(batches[0])
        steps = zip(batches, (objective(), objective(correction=CORRECTION)), strict=True)
        metrics = [policy.update(rows_of_rank(batch, policy), chosen) for batch, chosen in steps]
        runs[name] = Run(policy.specs(), policy.parameters_by_name(), score, metrics, policy.groups.is_last_stage)
    return runs


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Run]]:
    """Every case's runs by rank."""
    found: dict[str, list[Run]] = {}
    for world, cases in CASES.items():
        by_rank = run_gloo(world, run_cases, cases, timeout=400)
        found |= {name: [runs[name] for runs in by_rank] for name in cases}
    return found


def reference_of(name: str) -> str:
    return next(
        (kind for kind in ("tied", "llama", "one group", "qwen3", "mixture") if name.startswith(kind)), "reference"
    )


def weights_of(runs: list[Run], model: dict[str, Any]) -> Weights:
    return whole_weights([(run.specs, run.parameters) for run in runs], checkpoint_tensors(tiny_model(**model)))


def case_of(name: str) -> Case:
    return next(cases[name] for cases in CASES.values() if name in cases)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_after_two_steps(runs: dict[str, list[Run]], name: str) -> None:
    model = case_of(name).model
    found, expected = weights_of(runs[name], model), weights_of(runs[reference_of(name)], model)
    start = checkpoint_tensors(tiny_model(**model))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
        assert not torch.equal(tensor, start[key]), f"{key} was not trained"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_both_steps(runs: dict[str, list[Run]], name: str) -> None:
    """Loss, gradient norm and every other metric, on each rank that answers; they do not depend on the split either."""
    expected = runs[reference_of(name)][0].metrics
    assert 0 < expected[1]["correction/truncated_share"] < 1
    assert 0 < expected[1]["correction/rejected_share"] < 1
    assert "actor/grad_cosine" not in expected[0]
    for run in runs[name]:
        for step, wanted in zip(run.metrics, expected, strict=True):
            assert step["actor/grad_norm"] == pytest.approx(wanted["actor/grad_norm"], rel=1e-5)
            assert step.get("actor/grad_cosine") == pytest.approx(wanted.get("actor/grad_cosine"), abs=1e-5)
            if run.is_last_stage:
                assert step == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_on_every_rank(runs: dict[str, list[Run]], name: str) -> None:
    expected = runs[reference_of(name)][0].log_probs
    assert expected.count_nonzero() == int(mini_batch()["response_lengths"].sum())
    for run in runs[name]:
        torch.testing.assert_close(run.log_probs, expected, rtol=1e-5, atol=2e-6)
