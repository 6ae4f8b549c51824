"""The order of a training step, with workers that only write down what they are given."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from cfpo_hybrid.protocol import DataProto
from trainer import step as step_module
from trainer.config import Config
from workers.config import AlgorithmConfig

ROWS = DataProto(
    {
        "group_ids": torch.tensor([0, 0, 1, 1]),
        "rewards": torch.tensor([0.0, 1.0, 1.0, 0.0]),
        "response_lengths": torch.tensor([1, 2, 3, 1]),
    }
)


class Actors:
    """Answers every method of the hybrid worker, and keeps the mini-batches that each was given."""

    def __init__(self) -> None:
        self.mini_batches: dict[str, list[int]] = {}

    def run(self, method, batch=None):
        if batch is None:
            return None
        self.mini_batches[method.name] = batch["mini_batch"].tolist()
        if method.name == "update_policy":
            return [SimpleNamespace(updates=[], trips=[])]
        return DataProto({"old_log_probs": torch.zeros(4, 3)})


def test_old_log_probs_are_taken_in_the_mini_batches_of_the_update(monkeypatch):
    """Rows are spread over ranks and packed by mini-batch, or old and new log-probs differ by rounding."""
    rollout = SimpleNamespace(batch=ROWS, reward_meta=[], metrics={})
    monkeypatch.setattr(step_module, "sample_rollout", lambda session, step: rollout)
    actors = Actors()
    session = SimpleNamespace(
        config=Config(algorithm=AlgorithmConfig(batch_ratio=2)),
        actors=actors,
        timed=lambda stage: nullcontext(),
        needs_greedy_rewards=False,
        needs_log_probs=True,
        kl=SimpleNamespace(coef=0.0),
        kl_meta={},
        adjust_kl=lambda batch: 0.0,
    )
    report = step_module.train_step(session, 0)  # type: ignore[arg-type]
    assert sorted(report.batch["mini_batch"].tolist()) == [0, 0, 1, 1]
    assert actors.mini_batches["compute_log_probs"] == actors.mini_batches["update_policy"]
