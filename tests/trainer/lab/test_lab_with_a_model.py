"""The lab with a model behind the log-probs, in a process of its own."""

import csv
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from policy_world import mini_batch
from tiny_model import save_tiny_model

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.protocol.serialization import save
from trainer import cli
from workers.single_engine import lone_policy


def lab_of_both_batches(folder: Path) -> tuple[list[int], bool]:
    """The command on a batch that the model sampled itself and on one of other log-probs; whether weights stayed."""
    dist.destroy_process_group()  # the lab is a process without a world
    save_tiny_model(folder / "model")
    batch = mini_batch()
    with lone_policy(folder / "model", 0.7) as policy:
        before = {name: tensor.clone() for name, tensor in policy.parameters_by_name().items()}
        policy.gradient(batch, PolicyObjective(loss=build_policy_loss("clip")))
        kept = all(torch.equal(tensor, before[name]) for name, tensor in policy.parameters_by_name().items())
        own = policy.log_probs(batch)["old_log_probs"]
    save(batch.with_columns(old_log_probs=own), folder / "own.batch")
    save(batch.with_columns(old_log_probs=own + 0.3 * batch["old_log_probs"].sin()), folder / "other.batch")
    save(batch.with_columns(responses=batch["responses"] + 1000), folder / "foreign.batch")
    words = ["--model", str(folder / "model"), "--losses", "clip,cfpo", "--temperature", "0.7"]
    codes = [cli.main(["lab", str(folder / name), *words]) for name in ("own.batch", "other.batch", "foreign.batch")]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return codes, kept


def table(file: Path) -> dict[str, dict[str, float]]:
    with file.open() as lines:
        found = list(csv.DictReader(lines))
    return {line["name"]: {key: float(value) for key, value in line.items() if key != "name"} for line in found}


@pytest.mark.slow
def test_gradients_of_the_parameters_agree_on_policy_and_part_off_policy(tmp_path: Path):
    ((codes, kept),) = run_gloo(1, lab_of_both_batches, tmp_path)
    assert codes == [0, 0, 2]  # tokens that the model does not know are the user's mistake
    assert kept
    own, other = (table(tmp_path / name / "losses.csv") for name in ("own.lab", "other.lab"))
    for line in own.values():  # at r = 1 every loss has the gradient of the plain policy gradient
        assert line["cosine"] == pytest.approx(1.0, abs=1e-9)
        assert line["parameter_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert line["parameter_gradient_norm"] == pytest.approx(
            own["policy_gradient"]["parameter_gradient_norm"], rel=1e-5
        )
    assert other["policy_gradient"]["parameter_cosine"] == pytest.approx(1.0)
    assert other["cfpo"]["parameter_cosine"] < 0.99
    assert (tmp_path / "other.lab" / "parameter_cosines.png").is_file()
