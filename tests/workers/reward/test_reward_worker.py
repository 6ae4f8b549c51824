import logging
from pathlib import Path

import pytest
import torch

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import InProcessWorkerGroup
from workers.config import ModelConfig, RewardConfig
from workers.reward.reward_worker import RewardWorker

CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"  # as in conftest.py
CUSTOM = """
def score(problem: str, response: str, ground_truth: str, extra: dict) -> float:
    if response == "bad":
        raise ValueError("cannot score this")
    return len(response) + (problem == "p1") / 2 + extra["bonus"] + 100 * (ground_truth == "t")
"""


def batch_of(texts: list[str], truths: list[str], **columns: list[object]) -> DataProto:
    """Responses that end with the end of text and are padded with the letter 'x', which must not be read."""
    rows = [[CHARACTERS.index(character) + 1 for character in text] + [0] for text in texts]
    width = max(map(len, rows)) + 2
    padding = CHARACTERS.index("x") + 1
    return DataProto(
        {
            "responses": torch.tensor([row + [padding] * (width - len(row)) for row in rows]),
            "response_lengths": torch.tensor([len(row) for row in rows]),
            "problem": [f"p{number}" for number in range(len(texts))],
            "ground_truth": truths,
            **columns,
        }
    )


def group_of(model: ModelConfig, reward: RewardConfig, num_workers: int = 1) -> InProcessWorkerGroup:
    layouts = {"reward": ParallelLayout(dp=num_workers)}
    return InProcessWorkerGroup(RewardWorker, args=(model, reward), layouts=layouts, role="reward")


def test_scores_keep_the_order_of_the_rows_and_counts_come_along(model_with_tokenizer: ModelConfig):
    texts = [r"so \boxed{1/2}.", "no box", r"long " * 30 + r"\boxed{3}", r"\boxed{x+1}", r"\boxed{2}"]
    batch = batch_of(texts, [r"thus \boxed{0.5}", "1", "3", "1+x", "1"])
    with group_of(model_with_tokenizer, RewardConfig(num_processes=1, timeout_seconds=30.0), num_workers=2) as group:
        scored = group.run(RewardWorker.score, batch)
        assert scored["rewards"].tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
        assert scored["rewards"].dtype == torch.float32
        replicas = scored.meta["replicas"]
        assert isinstance(replicas, list)
        totals = {name: sum(counts[name] for counts in replicas) for name in replicas[0]}
        assert totals == {
            "reward/unboxed": 1,
            "reward/left_to_math_verify": 1,
            "reward/timeouts": 0,
            "reward/failures": 0,
        }
        assert group.run(RewardWorker.decode, batch) == texts


def test_a_custom_function_gets_all_four_arguments(
    model_with_tokenizer: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "custom.py"
    path.write_text(CUSTOM)
    batch = batch_of(["abc", "ab", "bad"], ["t", "f", "t"], extra=[{"bonus": 10}, {"bonus": 20}, {"bonus": 0}])
    with (
        group_of(model_with_tokenizer, RewardConfig(name=f"{path}:score", num_processes=1)) as group,
        caplog.at_level(logging.WARNING),
    ):
        scored = group.run(RewardWorker.score, batch)
    assert scored["rewards"].tolist() == [113.0, 22.5, 0.0]
    assert scored.meta["replicas"] == [{"reward/timeouts": 0, "reward/failures": 1}]
    assert "1 of 3 responses score 0" in caplog.text
    assert "ValueError: cannot score this" in caplog.text


def test_grader_processes_end_with_their_workers(model_with_tokenizer: ModelConfig, tmp_path: Path):
    path = tmp_path / "pid.py"
    path.write_text("import os\ndef score(*_):\n    return os.getpid()\n")
    reward = RewardConfig(name=f"{path}:score", num_processes=1)
    with group_of(model_with_tokenizer, reward, num_workers=2) as group:
        pids = {int(pid) for pid in group.run(RewardWorker.score, batch_of(["a", "b"], ["", ""]))["rewards"].tolist()}
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_empty_share_of_a_batch_is_scored(model_with_tokenizer: ModelConfig):
    batch = batch_of([r"\boxed{1}"], ["1"])
    with group_of(model_with_tokenizer, RewardConfig(num_processes=1)) as group:
        worker = group.workers[0]
        assert worker.score(batch.rows([]))["rewards"].shape == (0,)


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path):
    with pytest.raises(Exception, match="tokenizer cannot be loaded") as caught:
        group_of(ModelConfig(path=str(tmp_path)), RewardConfig())
    assert isinstance(caught.value.__cause__, ModelError)
