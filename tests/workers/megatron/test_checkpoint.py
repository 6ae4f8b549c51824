"""A policy that is saved and restored goes on bit for bit as if nothing had happened."""

from pathlib import Path

import pytest
import torch
from gloo import run_gloo
from megatron.core import parallel_state
from policy_world import Case, Weights, build_policy, mini_batch, objective, rows_of_rank

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.resharding import Rectangle
from workers.megatron.checkpoint import HeldPart, StateFiles
from workers.megatron.policy import MegatronPolicy

Steps = tuple[list[dict[str, float]], list[Weights], float]


def steps(policy: MegatronPolicy, seeds: range) -> Steps:
    metrics = []
    for seed in seeds:
        metrics.append(policy.update(rows_of_rank(mini_batch(seed=seed), policy), objective()))
        policy.lagged.remember()  # so that the last of the kept weights are those that are saved
    kept = [policy.parameters_by_name(), *policy.lagged.by_steps().values()]
    weights = [{name: tensor.clone() for name, tensor in each.items()} for each in kept]
    return metrics, weights, float(torch.rand(()))


def straight_and_resumed(case: Case, folder: Path) -> tuple[Steps, Steps]:
    policy = build_policy(case, weight_lag=3)
    steps(policy, range(2))
    policy.save(folder)
    straight = steps(policy, range(2, 4))
    parallel_state.destroy_model_parallel()
    resumed = build_policy(case, seed=99, weight_lag=3)
    resumed.load(folder)
    return straight, steps(resumed, range(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "case"),
    [
        (1, Case(distributed_optimizer=True, bf16=True)),
        (2, Case(distributed_optimizer=True)),
        (2, Case(distributed_optimizer=True, bf16=True)),
        (2, Case(tp=2, sequence_parallel=True)),
        (2, Case(pp=2, model={"tie_word_embeddings": True})),
    ],
)
def test_resumes_bit_for_bit(world: int, case: Case, tmp_path: Path) -> None:
    for straight, resumed in run_gloo(world, straight_and_resumed, case, tmp_path):
        assert straight[0] == resumed[0]
        assert len(straight[1]) == len(resumed[1]) == 4  # the current weights and three older ones
        for unbroken, restored in zip(straight[1], resumed[1], strict=True):
            assert unbroken.keys() == restored.keys()
            assert all(torch.equal(unbroken[name], tensor) for name, tensor in restored.items())
        assert straight[2] == resumed[2]  # random state


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no policy checkpoint"):
        StateFiles(tmp_path)


def saved(folder: Path) -> None:
    policy = build_policy(Case())
    steps(policy, range(1))
    policy.save(folder)


def test_what_is_missing_is_named_and_files_hold_no_code(tmp_path: Path) -> None:
    run_gloo(1, saved, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    # The final norm of the tiny model has 128 numbers.
    part = HeldPart("model.norm.weight", Rectangle((100,), (50,)), torch.empty(50))
    with StateFiles(tmp_path) as files, pytest.raises(DataError, match=r"has no model\.norm\.weight\[128:150\]"):
        files.fill("exp_avg", part)
    (tmp_path / "state-rank0.safetensors").unlink()
    with StateFiles(tmp_path) as files, pytest.raises(DataError, match=r"lacks state-rank0\.safetensors"):
        files.fill("exp_avg", part)
