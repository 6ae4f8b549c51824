from pathlib import Path
from typing import Any, cast

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
        assert scored["verdicts"].tolist() == scored["rewards"].tolist()
        totals = {name: sum(meta["counts"][name] for meta in replicas) for name in replicas[0]["counts"]}
        assert totals == {
            "reward/unboxed": 1,
            "reward/left_to_math_verify": 1,
            "reward/timeouts": 0,
            "reward/failures": 0,
        }
        assert group.run(RewardWorker.decode, batch) == texts


def test_a_custom_function_gets_all_four_arguments(model_with_tokenizer: ModelConfig, tmp_path: Path):
    path = tmp_path / "custom.py"
    path.write_text(CUSTOM)
    batch = batch_of(["abc", "ab", "bad"], ["t", "f", "t"], extra=[{"bonus": 10}, {"bonus": 20}, {"bonus": 0}])
    with group_of(model_with_tokenizer, RewardConfig(name=f"{path}:score", num_processes=1)) as group:
        scored = group.run(RewardWorker.score, batch)
    assert scored["rewards"].tolist() == [113.0, 22.5, 0.0]
    assert "verdicts" not in scored
    (meta,) = cast(list[dict[str, Any]], scored.meta["replicas"])
    assert meta["counts"] == {
        "reward/timeouts": 0,
        "reward/failures": 1,
        "reward/no_opinion": 0,
        "reward/clipped": 0,
    }
    calls, failed, first = meta["failures"]["score"]
    assert (calls, failed) == (3, 1)
    for part in ("ValueError: cannot score this", "response: 'bad'", f'File "{path}", line', "Traceback"):
        assert part in first


def test_several_rewards_are_weighed_and_each_is_logged(model_with_tokenizer: ModelConfig, tmp_path: Path):
    path = tmp_path / "custom.py"
    path.write_text(
        "def tone(problem, response, truth, extra):\n"
        "    return None if 'q' in response else {'score': len(response), 'words': 2 * len(response), 'note': 'n'}\n"
        "def ends(problem, response, truth, extra):\n"
        "    return float(response.endswith('<end>'))\n"
    )
    texts = [r"\boxed{1}", r"\boxed{q}", "no"]
    reward = RewardConfig(
        further=[f"{path}:tone", f"{path}:ends"],
        weights=[1.0, -0.5, 10.0],
        highest=5.0,
        special_tokens=True,
        num_processes=1,
        timeout_seconds=30.0,
    )
    with group_of(model_with_tokenizer, reward) as group:
        scored = group.run(RewardWorker.score, batch_of(texts, ["1"] * 3))
    # With "<end>" the texts have 14 and 7 characters, lowered to 5; one that has a q gets no opinion of "tone".
    assert scored["rewards"].tolist() == [1 - 2.5 + 10, 10.0, 0 - 2.5 + 10]
    assert scored["verdicts"].tolist() == [1.0, 0.0, 0.0]
    (meta,) = cast(list[dict[str, Any]], scored.meta["replicas"])
    assert meta["means"] == {
        "reward/math": [1.0, 3],
        "reward/tone": [10.0, 2],
        "reward/tone/words": [42.0, 2],
        "reward/ends": [3.0, 3],
    }
    assert meta["counts"]["reward/clipped"] == 2
    assert meta["counts"]["reward/no_opinion"] == 0
    assert meta["failures"] == {}


def test_no_opinion_is_no_reward_and_no_verdict(model_with_tokenizer: ModelConfig, tmp_path: Path):
    path = tmp_path / "custom.py"
    path.write_text(
        "def score(problem, response, truth, extra):\n"
        "    if response == 'mean':\n"
        "        return {'score': 1.0, 'mean': 2.0}\n"
        "    return None if response == 'none' else {'score': len(response), 'length': len(response)}\n"
    )
    reward = RewardConfig(name=f"{path}:score", pass_threshold=3.0, num_processes=1)
    with group_of(model_with_tokenizer, reward) as group:
        scored = group.run(RewardWorker.score, batch_of(["none", "abc", "ab", "mean"], [""] * 4))
    rewards, verdicts = scored["rewards"], scored["verdicts"]
    assert rewards.isnan().tolist() == verdicts.isnan().tolist() == [True, False, False, False]
    assert rewards[1:].tolist() == [3.0, 2.0, 0.0]
    assert verdicts[1:].tolist() == [1.0, 0.0, 0.0]
    (meta,) = cast(list[dict[str, Any]], scored.meta["replicas"])
    assert meta["counts"]["reward/no_opinion"] == 1
    assert meta["means"] == {"reward/length": [5.0, 2]}
    # "reward/mean" is the run's own.
    assert "under 'mean', a name that the run uses itself" in meta["failures"]["score"][2]


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
    with pytest.raises(Exception, match="has no tokenizer that can be loaded") as caught:
        group_of(ModelConfig(path=str(tmp_path)), RewardConfig())
    assert isinstance(caught.value.__cause__, ModelError)
