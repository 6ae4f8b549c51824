"""The hybrid worker's own decisions, with engines that only count: when passes end, and which tokens count."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss, register_policy_loss
from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from cfpo_hybrid.errors import NumericsError
from cfpo_hybrid.protocol import DataProto
from workers import hybrid_worker
from workers.config import AlgorithmConfig, PolicyLossConfig, RolloutConfig, WatchConfig
from workers.hybrid_worker import HybridWorker
from workers.megatron.host_memory import LaggedWeights
from workers.pass_watch import PassWatch
from workers.phases import Phase
from workers.rollout.engine import SamplingSettings
from workers.step_plan import StepPlan


@register_policy_loss("passes_test_reference", config=CfpoConfig, needs=["ref_log_probs"])
def to_the_reference(inputs, config):
    return (inputs.log_probs - inputs.ref_log_probs).square()


class FakePolicy:
    """Answers each optimizer step with the next KL; None stands for a gradient that is not finite."""

    def __init__(self, kls: list[float | None]) -> None:
        self.kls, self.updates = kls, []
        self.lagged = LaggedWeights(dict, lag=0)

    def log_probs(self, batch):
        return DataProto({"old_log_probs": torch.full((1, 2), -1.0)})

    def ref_log_probs(self, batch):
        return DataProto({"ref_log_probs": torch.full((1, 2), -1.5)})

    def update(self, batch, objective, *, on_policy):
        self.updates.append(batch["mini_batch"].tolist())
        kl = self.kls[len(self.updates) - 1]
        if kl is None:
            raise NumericsError("the gradient norm is nan")
        return {"actor/kl_k3": kl, "actor/grad_norm": 1.0}


@pytest.fixture
def worker(monkeypatch):
    def make(kls=(), watch=None, phase=Phase.TRAINING, loss="cfpo", **options):
        monkeypatch.setattr(hybrid_worker, "PassWatch", functools.partial(PassWatch, agree=list))
        algorithm = AlgorithmConfig(**options)
        made = HybridWorker(SimpleNamespace(rank=0))  # type: ignore[arg-type]
        made.settings = SimpleNamespace(  # type: ignore[assignment]
            algorithm=algorithm,
            plan=StepPlan.of(algorithm, PolicyLossConfig(name=loss), RolloutConfig()),
            watch=watch or WatchConfig(),
            max_response_length=3,
        )
        made.policy = FakePolicy(list(kls))  # type: ignore[assignment]
        made.objective = PolicyObjective(loss=build_policy_loss(loss))
        made.phase = phase
        return made

    return make


ROWS = DataProto({"mini_batch": torch.tensor([0, 1, 0, 1])})


def passes(report):
    return [(update.iteration, update.mini_batch) for update in report.updates]


def test_all_passes_over_all_mini_batches_in_order(worker):
    made = worker([0.0, 0.1, 0.2, 0.3], iterations=2, batch_ratio=2)
    report = made.update_policy(ROWS)
    assert passes(report) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert made.policy.updates == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert report.trips == [] and made.policy_version == 1


def test_the_target_kl_ends_the_passes(worker):
    made = worker([0.0, 0.1, 0.3], WatchConfig(kl=0.2), iterations=2, batch_ratio=2)
    report = made.update_policy(ROWS)
    assert passes(report) == [(0, 0), (0, 1), (1, 0)]
    assert [trip.limit for trip in report.trips] == ["watch.kl"]
    assert made.policy_version == 1  # the weights have changed


@pytest.mark.parametrize(("action", "taken"), [("stop", 2), ("stop_passes", 2), ("warn", 4)])
def test_a_gradient_that_is_not_finite_is_left_to_the_watch(worker, action, taken):
    made = worker([0.0, None, 0.1, 0.1], WatchConfig(non_finite_action=action), iterations=2, batch_ratio=2)
    report = made.update_policy(ROWS)
    assert len(report.updates) == taken
    assert math.isnan(report.updates[1].metrics["actor/grad_norm"])
    assert [(trip.limit, trip.action) for trip in report.trips] == [("watch.non_finite", action)]


@pytest.mark.parametrize("masked", [False, True])
def test_truncated_responses_may_be_left_out_of_the_loss(worker, masked):
    made = worker(phase=Phase.GENERATING, mask_truncated=masked)
    answer = DataProto(
        {
            "response_mask": torch.tensor([[True, True, True], [True, True, False]]),
            "truncated": torch.tensor([True, False]),
        }
    )
    made._engine = SimpleNamespace(generate=lambda prompts, sampling, width: answer)
    mask = made.generate(ROWS, SamplingSettings(max_tokens=3))["response_mask"]
    assert mask.tolist() == [[not masked] * 3, [True, True, False]]


@pytest.mark.parametrize(
    ("loss", "old", "present"),
    [
        ("cfpo", "recompute", False),
        ("passes_test_reference", "recompute", True),
        ("passes_test_reference", "rollout", True),
    ],
)
def test_a_loss_gets_the_reference_that_it_needs(worker, loss, old, present):
    made = worker(loss=loss, old_log_probs=old)
    batch = {"responses": torch.zeros(1, 2, dtype=torch.int64), "response_lengths": torch.tensor([2])}
    answer = made.compute_log_probs(DataProto(batch | {"rollout_log_probs": torch.full((1, 2), -1.0)}))
    assert ("ref_log_probs" in answer) is present
