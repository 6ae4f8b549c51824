"""A fault put into vLLM's parameters on purpose is found by name; fakes hold the weights in the places of the engines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from resharding_world import distinct_tensors, shards_of, small_shape

from cfpo_hybrid.models.engine_specs import megatron_specs, vllm_specs
from cfpo_hybrid.models.weight_plan import Handover, Placement
from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import RolloutConfig
from workers.weight_check import NAMED, TensorDifference, WeightDifferences, differing_weights

SHAPE = small_shape(num_layers=4)
HALF = torch.bfloat16


def check_with_faults(train: ParallelLayout, rollout_tp: int) -> list[WeightDifferences]:
    """What is found without a fault, and with rank 1's second key row and its last layer's gate spoilt."""
    rank = dist.get_rank()
    trained = distinct_tensors(SHAPE)
    own_specs = megatron_specs(SHAPE, train, train.coordinate(rank))
    engine_specs = vllm_specs(SHAPE, rollout_tp, rank % rollout_tp)
    # Both engines hold the same weights, cut differently; vLLM in bf16.
    live = {name: tensor.to(HALF) for name, tensor in shards_of(engine_specs, trained, padding=7.0).items()}
    policy: Any = SimpleNamespace(shape=SHAPE, parameters_by_name=lambda: shards_of(own_specs, trained))
    engine: Any = SimpleNamespace(dtype=HALF, parameters=lambda: live)
    rollout = RolloutConfig(tensor_parallel_size=rollout_tp, bucket_bytes=1024)
    handover = Handover(
        shape=SHAPE,
        training=train,
        rollout=ParallelLayout.of_world(2, tp=rollout_tp),
        placement=Placement.colocated(2),
        ranks_per_node=2,
    )
    settings: Any = SimpleNamespace(rollout=rollout, ranks_per_node=2, handover=lambda shape: handover)
    found = [differing_weights(policy, engine, settings)]
    if rank == 1:
        queries = SHAPE.query_size // rollout_tp
        live["model.layers.1.self_attn.qkv_proj.weight"][queries + 1, 2] *= 2
        live["model.layers.2.mlp.gate_up_proj.weight"][0, 0] = torch.nan
    return [*found, differing_weights(policy, engine, settings)]


@pytest.mark.parametrize(("train", "rollout_tp"), [(ParallelLayout(tp=2), 1), (ParallelLayout(pp=2), 2)])
def test_a_fault_is_named_on_its_rank(train: ParallelLayout, rollout_tp: int) -> None:
    keys, gate = "model.layers.1.self_attn.k_proj.weight", "model.layers.2.mlp.gate_proj.weight"
    # Doubled, a number is off by itself: the one in the second key row of rank 1.
    row = 1 + (SHAPE.kv_size // 2 if rollout_tp == 2 else 0)
    doubled = float(distinct_tensors(SHAPE)[keys][row, 2].to(HALF))
    expected = WeightDifferences(
        2,
        (
            TensorDifference(keys, 1, "model.layers.1.self_attn.qkv_proj.weight", doubled),
            TensorDifference(gate, 1, "model.layers.2.mlp.gate_up_proj.weight", torch.inf),
        ),
    )
    for clean, spoilt in run_gloo(2, check_with_faults, train, rollout_tp):
        assert clean == WeightDifferences(0, ())
        assert spoilt == expected


def test_the_message_names_the_first_few():
    one = TensorDifference("model.norm.weight", 3, "model.norm.weight", 0.25)
    text = str(WeightDifferences(NAMED + 2, (one,) * (NAMED + 1)))
    assert "in 7 tensors: model.norm.weight on rank 3" in text
    assert text.count("largest difference 0.25") == NAMED
    assert text.endswith("and 2 more")
