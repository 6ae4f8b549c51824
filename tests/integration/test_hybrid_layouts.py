"""Whole training steps through Ray, Megatron-core and vLLM: every layout tells the same story."""

import json
import math
from pathlib import Path

import pytest
from integration_world import overrides, write_world

from trainer.config import TrainerConfig
from trainer.export import export
from trainer.launch.ray_cluster import ray_cluster
from trainer.rules import load_config
from trainer.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LAYOUTS: dict[tuple[int, int, int, int], dict[str, object]] = {
    (2, 1, 1, 2): {"rollout__load_format": "load_weights", "algorithm__old_log_probs": "rollout"},
    (2, 1, 1, 1): {},
    (1, 2, 1, 1): {"actor__megatron__virtual_pipeline_parallel_size": 2},
    (2, 2, 1, 2): {},
}
"""(train tp, pp, dp; rollout tp) and what else is tried there; each is compared with (1, 1, 2; 1)."""


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    with ray_cluster(TrainerConfig(num_workers=4), "cpu"):
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def run(
    recipe: Path, name: str, layout: tuple[int, int, int, int], **settings: object
) -> tuple[list[dict], list[dict]]:
    tp, pp, dp, rollout_tp = layout
    run_dir = recipe.parent / name
    words = overrides(
        trainer__run_dir=run_dir,
        trainer__num_workers=tp * pp * dp,
        actor__megatron__tensor_parallel_size=tp,
        actor__megatron__pipeline_parallel_size=pp,
        rollout__tensor_parallel_size=rollout_tp,
        **settings,
    )
    train(load_config(recipe, words))
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [json.loads(line) for line in (run_dir / "updates.jsonl").read_text().splitlines()]
    return metrics, updates


@pytest.fixture(scope="module")
def baseline(recipe: Path) -> tuple[list[dict], list[dict]]:
    return run(recipe, "baseline", (1, 1, 2, 1))


def test_the_data_parallel_run_is_sound(baseline):
    metrics, updates = baseline
    assert [line["step"] for line in metrics] == [0, 1]
    assert [(line["iteration"], line["mini_batch"]) for line in updates] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # The first optimizer step trains the policy that sampled: every ratio is exactly 1.
    assert updates[0]["actor/ratio_deviation"] == 0.0
    assert updates[0]["actor/clip_fraction"] == 0.0
    assert updates[3]["actor/ratio_deviation"] > 0.0
    assert metrics[1]["reshard/probe_difference"] < 1e-4
    assert metrics[1]["reshard/bytes_moved"] == 0.0
    assert metrics[1]["rollout/log_prob_diff_max"] < 1e-4
    assert metrics[1]["reward/std"] > 0.0


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "tp{}-pp{}-dp{}-rollout{}".format(*layout))
def test_layouts_agree(recipe: Path, baseline, layout):
    sequence_parallel = {"actor__megatron__sequence_parallel": layout[0] > 1}
    metrics, updates = run(recipe, "-".join(map(str, layout)), layout, **sequence_parallel, **LAYOUTS[layout])
    from_rollout = "algorithm__old_log_probs" in LAYOUTS[layout]
    # What the engines disagree in counts as drift where training takes over the rollout's log-probs, and else as numeric.
    engines, nothing = ("drift", "numeric") if from_rollout else ("numeric", "drift")
    assert 0.0 < updates[0][f"mismatch/{engines}_rms"] < 1e-4
    assert updates[0][f"mismatch/{nothing}_rms"] == 0.0
    expected_metrics, expected_updates = baseline
    for key in ("reward/mean", "response_length/mean", "val/response_length"):
        assert metrics[-1][key] == pytest.approx(expected_metrics[-1][key], rel=1e-6)
    assert metrics[-1]["reshard/probe_difference"] < 1e-4
    for update, expected in zip(updates, expected_updates, strict=True):
        for key in ("actor/loss", "actor/grad_norm", "actor/kl_k3", "actor/entropy"):
            assert math.isclose(update[key], expected[key], rel_tol=1e-3, abs_tol=1e-6), key


def test_experts_spread_over_ranks(tmp_path: Path):
    recipe = write_world(tmp_path, family="qwen3_moe", num_hidden_layers=2)
    spread = {"actor__megatron__expert_parallel_size": 2}
    metrics, updates = run(recipe, "experts", (1, 1, 2, 1), trainer__val_before_train=False, **spread)
    # Experts sum up tokens of both ranks, in the pass for old log-probs in the same order as in the update.
    assert updates[0]["actor/ratio_deviation"] == 0.0
    assert updates[3]["actor/ratio_deviation"] > 1e-5
    assert metrics[-1]["reshard/probe_difference"] < 1e-4
    assert metrics[-1]["rollout/log_prob_diff_max"] < 1e-4
    # Either rank lacks half of the 8 experts of 2 layers, each three matrices of 128 x 64 in fp32.
    assert metrics[-1]["reshard/bytes_moved"] == 2 * (2 * 4 * 3 * 128 * 64 * 4)
    report = export(str(tmp_path / "experts"), tmp_path / "out", overrides(**spread), check=True)
    assert report.layout.ep == 2 and report.differences == ()
