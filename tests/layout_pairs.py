"""Random models with a training and a rollout layout that fit them, for tests of reshard plans."""

from dataclasses import dataclass

from hypothesis import strategies as st
from resharding_world import megatron_world, small_shape, vllm_world

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.weight_plan import Handover
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import ShardSpec


@dataclass(frozen=True)
class LayoutPair:
    shape: ModelShape
    handover: Handover
    sources: list[list[ShardSpec]]
    destinations: list[list[ShardSpec]]


@st.composite
def layout_pairs(draw, families: tuple[str, ...] = ("qwen2", "llama", "qwen3", "qwen3_moe")) -> LayoutPair:
    """Grouped heads, padded vocabularies, uneven stages, tied heads; up to 4 x 3 x 2 ranks."""
    family = draw(st.sampled_from(families))
    kv_heads, group = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 4]))
    heads, is_mixture = kv_heads * group, "moe" in family
    sizes = [tp for tp in (1, 2, 3, 4) if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)]
    sizes = [tp for tp in sizes if not (is_mixture and tp == 3)]  # experts are 8 wide
    layers = draw(st.integers(1, 5))
    pp, first, last = draw(st.sampled_from(_stages(layers)))
    tp, dp = draw(st.sampled_from(sizes)), draw(st.integers(1, 2))
    expert_sizes = [ep for ep in (1, 2, 4) if tp * dp % ep == 0] if is_mixture else [1]
    training = ParallelLayout(tp=tp, pp=pp, dp=dp, ep=draw(st.sampled_from(expert_sizes)))
    world_size = training.world_size
    rollout_tp = draw(st.sampled_from([size for size in sizes if world_size % size == 0 and 64 % size == 0]))
    shape = small_shape(
        family=family,
        num_layers=layers,
        hidden_size=8,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        intermediate_size=12 * draw(st.integers(1, 2)),
        vocab_size=draw(st.integers(1, 70)),
        tied_embeddings=draw(st.booleans()),
    )
    handover = Handover(
        shape=shape,
        training=training,
        rollout=ParallelLayout.of_world(world_size, tp=rollout_tp),
        ranks_per_node=draw(st.integers(1, 8)),
        first_stage_layers=first,
        last_stage_layers=last,
    )
    sources = megatron_world(shape, training, first_stage_layers=first, last_stage_layers=last)
    return LayoutPair(shape, handover, sources, vllm_world(shape, world_size, rollout_tp))


def _stages(layers: int) -> list[tuple[int, int | None, int | None]]:
    """(stages, layers of the first, of the last) for so many layers."""
    even = [(pp, None, None) for pp in (1, 2, 3) if layers % pp == 0]
    two = [(2, first, layers - first) for first in range(1, layers)]
    three = [(3, first, layers - first - 1) for first in range(1, layers - 1)]
    return even + two + three
