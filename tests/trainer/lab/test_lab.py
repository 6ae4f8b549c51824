"""The lab on four tokens worked out by hand, its files, and batches that it refuses."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from lab_world import four_tokens, save_batch
from published_losses import published_losses

from cfpo_hybrid.errors import ConfigError, DataError
from trainer import cli
from trainer.config import losses as chosen_losses
from trainer.config.losses import loss_label
from trainer.lab.gradients import Comparison, RatioBins
from trainer.lab.lab import LabResult, run_lab
from trainer.lab.lab_files import table, text
from trainer.lab.saved_rollout import load_rollout


@pytest.fixture(autouse=True)
def no_losses_of_other_tests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chosen_losses, "POLICY_LOSSES", published_losses())


@pytest.fixture
def batch_file(tmp_path: Path) -> Path:
    return save_batch(tmp_path / "step_000010.batch")


def lab(source: Path, **options) -> LabResult:
    return run_lab(source, **options)


def test_weights_gradients_and_cosines_by_hand(batch_file: Path):
    result = lab(batch_file, losses="clip,cfpo")
    weights = {loss_label(reading.loss): reading.weights.tolist() for reading in result.readings}
    # r = 1.1 and 1.5, first for A = 1, then for A = -1; epsilon = 0.2.
    assert weights["policy_gradient"] == pytest.approx([1, 1, 1, 1])
    assert weights["clip"] == pytest.approx([1.1, 0, 1.1, 1.5], abs=1e-6)
    # r (1 - sign(A) (r - 1) / epsilon): 1.1 x 0.5, 1.5 x -1.5, 1.1 x 1.5, 1.5 x 3.5
    assert weights["cfpo"] == pytest.approx([0.55, -2.25, 1.65, 5.25], rel=1e-5)
    found = {row["name"]: row for row in table(result)}
    # Every token has a quarter of the loss: gradients are weights x -A / 4.
    assert found["policy_gradient"]["gradient_norm"] == pytest.approx(0.5)
    norm = math.sqrt(1.1**2 + 1.1**2 + 1.5**2)
    assert found["clip"]["gradient_norm"] == pytest.approx(norm / 4, rel=1e-6)
    assert found["clip"]["cosine"] == pytest.approx(3.7 / (2 * norm), rel=1e-6)
    assert (found["clip"]["zero_gradient_share"], found["cfpo"]["zero_gradient_share"]) == (0.25, 0.0)
    assert (found["clip"]["corrective_share"], found["cfpo"]["corrective_share"]) == (0.0, 0.25)
    # -(1.1 + 1.2) / 4 + (1.1 + 1.5) / 4
    assert found["clip"]["loss"] == pytest.approx(0.075, abs=1e-6)


def test_cosines_of_vectors_by_hand():
    compared = Comparison.of([torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]), torch.zeros(2)])
    assert compared.norms.tolist() == [5.0, 5.0, 0.0]
    assert compared.cosines[0].tolist()[:2] == pytest.approx([1.0, 24 / 25])
    assert compared.cosines[2].isnan().all()


def test_weights_by_bins_of_the_ratio(batch_file: Path):
    result = lab(batch_file, losses="clip")
    bins = RatioBins(result.inputs, count=4)
    assert bins.edges[[0, -1]].tolist() == pytest.approx([1.1, 1.5])
    clip = result.readings[1]
    up, down = (bins.curve(clip.weights, positive=positive) for positive in (True, False))
    assert up.tokens.tolist() == [1, 0, 0, 1]
    assert up.weight[[0, 3]].tolist() == pytest.approx([1.1, 0.0])
    assert up.weight[1].isnan()
    assert up.zero_share[[0, 3]].tolist() == [0.0, 1.0]
    assert down.weight[[0, 3]].tolist() == pytest.approx([1.1, 1.5])


def test_a_drift_is_seeded_and_keeps_the_mean_ratio(tmp_path: Path):
    wide = torch.full((50, 200), -2.0)
    columns = {"rollout_log_probs": wide, "old_log_probs": wide, "response_mask": torch.ones(50, 200, dtype=torch.bool)}
    rows_of_batch = four_tokens().select("advantages").rows([0, 1] * 25)
    file = save_batch(tmp_path / "b.batch", rows_of_batch, response_lengths=torch.full((50,), 200), **columns)
    first, second, other = (lab(file, losses="clip", drift=0.2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.inputs.ratio, second.inputs.ratio)
    assert not torch.equal(first.inputs.ratio, other.inputs.ratio)
    assert float(first.inputs.ratio.detach().mean()) == pytest.approx(
        1.0, abs=0.01
    )  # 10000 tokens: 0.002 is one deviation
    assert float(first.inputs.log_ratio.detach().std()) == pytest.approx(0.2, rel=0.03)
    assert "0.2 nats (seed 1)" in text(first)


def test_every_registered_loss_is_compared_and_chosen_ones_are_written(
    batch_file: Path, capsys: pytest.CaptureFixture[str]
):
    labels = {loss_label(reading.loss) for reading in lab(batch_file, drift=0.3).readings}
    assert {"clip", "cfpo", "gspo", "kl_cov", "sapo"} <= labels
    assert cli.main(["lab", str(batch_file), "--drift", "0.3", "--losses", "cfpo,clip:clip_high=0.3"]) == 0
    out = capsys.readouterr().out
    folder = batch_file.with_suffix(".lab")
    names = ["losses.csv", "weights.csv", "weights.png", "cosines.csv", "cosines.png"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    with (folder / "losses.csv").open() as file:
        found = [line["name"] for line in csv.DictReader(file)]
    assert found == ["policy_gradient", "cfpo", "clip clip_high=0.3"]
    assert "4 counted tokens" in out
    assert str(folder / "losses.csv") in out


def test_a_run_directory_means_its_newest_batch_and_its_own_settings(tmp_path: Path):
    for name in ("rollouts/step_000010.batch", "rollouts/step_000020.batch", "offending/step_000020.batch"):
        save_batch(tmp_path / name)
    settings = {
        "policy_loss": {"name": "cfpo", "plugins": [], "epsilon": 0.4},
        "algorithm": {"loss_aggregation": "seq_mean_token_sum"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    result = lab(tmp_path)
    assert result.rollout.path == tmp_path / "offending" / "step_000020.batch"
    labels = [loss_label(reading.loss) for reading in result.readings]
    assert labels[:2] == ["policy_gradient", "cfpo epsilon=0.4"]
    assert "cfpo" in labels
    assert float(result.tokens.norms[0]) == pytest.approx(1.0)  # each of the four tokens weighs 1 / 2 responses


def test_a_loss_without_its_inputs_is_left_out_and_named(batch_file: Path, tmp_path: Path):
    plugin = tmp_path / "needs_reference.py"
    plugin.write_text(
        "from cfpo_hybrid import register_policy_loss\n"
        "from cfpo_hybrid.algorithms.policy_loss.policy_gradient import PolicyGradientConfig\n"
        "@register_policy_loss('needs_reference', config=PolicyGradientConfig, needs={'ref_log_probs'})\n"
        "def needs_reference(inputs, config):\n"
        "    return -inputs.advantages * (inputs.log_probs - inputs.ref_log_probs)\n"
    )
    result = lab(batch_file, losses="needs_reference", plugins=[str(plugin)])
    assert result.left_out == ["needs_reference: needs ref_log_probs"]
    assert "left out: needs_reference" in text(result)


def test_equal_policies_are_said_to_be_equal(tmp_path: Path):
    file = save_batch(tmp_path / "b.batch", old_log_probs=torch.full((2, 3), -2.0))
    result = lab(file)
    kept = [reading.metrics["actor/zero_gradient_share"] == 0 for reading in result.readings]
    assert sum(kept) >= 14
    cosines = result.tokens.cosines[kept][:, kept]
    assert float(cosines.min()) == pytest.approx(1.0)
    assert "nearly the same" in text(result)
    assert len(RatioBins(result.inputs, count=4).edges.unique()) == 5  # although all ratios are 1


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path):
    file = save_batch(tmp_path / "b.batch", advantages=torch.tensor([1.0, math.nan]))
    result = lab(file, losses="clip")
    assert result.rollout.rows_left_out == 1
    assert "left out: 1 response with numbers that are not finite" in text(result)


def test_batches_that_cannot_be_used_are_mistakes_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    strange = tmp_path / "strange.batch"
    strange.write_bytes(b"no batch at all, but long enough")
    with pytest.raises(DataError, match="holds no saved rollout"):
        load_rollout(strange)
    with pytest.raises(DataError, match="lacks prompts"):
        load_rollout(save_batch(tmp_path / "a.batch"), ["prompts"])
    with pytest.raises(DataError, match="every advantage is 0"):
        load_rollout(save_batch(tmp_path / "b.batch", advantages=torch.zeros(2)))
    with pytest.raises(DataError, match="none of its 2 rows"):
        load_rollout(save_batch(tmp_path / "c.batch", advantages=torch.full((2,), math.nan)))
    with pytest.raises(ConfigError, match="there is no batch or run directory"):
        load_rollout(tmp_path / "nowhere")
    assert cli.main(["lab", str(tmp_path)]) == 2
    assert "has no saved rollout" in capsys.readouterr().err


def test_the_policy_in_training_must_be_said_once(tmp_path: Path, batch_file: Path):
    with pytest.raises(ConfigError, match="give one of them"):
        lab(batch_file, model="m", drift=0.1)
    with pytest.raises(ConfigError, match=r"--drift 0\.0"):
        lab(batch_file, drift=0.0)
    alone = save_batch(tmp_path / "alone.batch", four_tokens().without("rollout_log_probs"))
    with pytest.raises(ConfigError, match="holds one policy only"):
        lab(alone)
