"""The world of a training layout is torch's, and processes that do not train are in another one."""

from pathlib import Path

import pytest
import torch.distributed as dist
from gloo import run_gloo
from policy_world import CPU, Case, build_policy, mini_batch, objective, rows_of_rank

from cfpo_hybrid.errors import ConfigError, DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.megatron.parallel import initialize_parallel


def step() -> dict[str, float]:
    policy = build_policy(Case(tp=2))
    return policy.update(rows_of_rank(mini_batch(), policy), objective())


def step_in_a_pool(folder: Path) -> dict[str, float]:
    """Of three processes the last two train by themselves."""
    rank = dist.get_rank()
    with pytest.raises(DispatchError, match=rf"rank 1 of a torch world of 2, and is rank {rank} of 3"):
        initialize_parallel(ParallelLayout(tp=2), rank=1, device=CPU, seed=0)
    dist.destroy_process_group()
    name, place, size = ("others", 0, 1) if rank == 0 else ("training", rank - 1, 2)
    dist.init_process_group("gloo", init_method=f"file://{folder / name}", rank=place, world_size=size)
    return step() if name == "training" else {}


@pytest.mark.slow
def test_a_pool_of_a_larger_job_trains_as_a_job_of_its_own(tmp_path: Path) -> None:
    _, first, second = run_gloo(3, step_in_a_pool, tmp_path)
    assert [first, second] == run_gloo(2, step)


def test_sequences_are_not_split() -> None:
    with pytest.raises(ConfigError, match=r"context_parallel_size=2 must be 1"):
        initialize_parallel(ParallelLayout(cp=2), rank=0, device=CPU, seed=0)
