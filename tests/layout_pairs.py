"""Random models with a training and a rollout layout that fit them, for tests of reshard plans."""

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from resharding_world import megatron_world, small_shape, vllm_world

from cfpo_hybrid.models import ModelShape, PipelineCut, stage_sizes
from cfpo_hybrid.models.weight_plan import Handover, Placement
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import ShardSpec


@dataclass(frozen=True)
class LayoutPair:
    """A handover and the shards of each of its processes."""

    shape: ModelShape
    handover: Handover
    sources: list[list[ShardSpec]]
    destinations: list[list[ShardSpec]]


@st.composite
def layout_pairs(draw, families: tuple[str, ...] = ("qwen2", "llama", "qwen3", "qwen3_moe")) -> LayoutPair:
    """Grouped heads, padded vocabularies, uneven stages, chunks, tied heads; up to 4 x 3 x 2 ranks."""
    family = draw(st.sampled_from(families))
    kv_heads, group = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 4]))
    heads, is_mixture = kv_heads * group, "moe" in family
    sizes = [tp for tp in (1, 2, 3, 4) if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)]
    sizes = [tp for tp in sizes if not (is_mixture and tp == 3)]  # experts are 8 wide
    layers = draw(st.integers(1, 6))
    pp, cut = draw(st.sampled_from(_stages(layers)))
    tp, (dp, cp) = draw(st.sampled_from(sizes)), draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    expert_sizes = [ep for ep in (1, 2, 4) if tp * dp * cp % ep == 0] if is_mixture else [1]
    training = ParallelLayout(tp=tp, pp=pp, dp=dp, cp=cp, ep=draw(st.sampled_from(expert_sizes)))
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
        placement=Placement.colocated(world_size),
        ranks_per_node=draw(st.integers(1, 8)),
        cut=cut,
    )
    sources = megatron_world(shape, training, cut)
    return LayoutPair(shape, handover, sources, vllm_world(shape, world_size, rollout_tp))


@st.composite
def placed_pairs(draw) -> LayoutPair:
    """As ``layout_pairs``, in processes that have a rank of either engine, of both or of none, in any order."""
    pair = draw(layout_pairs())
    training, rollout = pair.handover.training, ParallelLayout(tp=pair.handover.rollout.tp, dp=draw(st.integers(1, 3)))
    processes = st.permutations(range(draw(st.integers(max(training.world_size, rollout.world_size), 30))))
    placement = Placement(tuple(draw(processes)[: training.world_size]), tuple(draw(processes)[: rollout.world_size]))
    sources: list[list[ShardSpec]] = [[] for _ in range(placement.world_size)]
    destinations: list[list[ShardSpec]] = [[] for _ in range(placement.world_size)]
    for process, specs in zip(placement.training, pair.sources, strict=True):
        sources[process] = specs
    for rank, process in enumerate(placement.rollout):
        destinations[process] = pair.destinations[rank % rollout.tp]
    return LayoutPair(pair.shape, replace(pair.handover, rollout=rollout, placement=placement), sources, destinations)


def _stages(layers: int) -> list[tuple[int, PipelineCut]]:
    """Numbers of stages and cuts for so many layers."""
    even = [(pp, PipelineCut()) for pp in (1, 2, 3) if layers % pp == 0]
    two = [(2, PipelineCut(first=first, last=layers - first)) for first in range(1, layers)]
    three = [(3, PipelineCut(first=first, last=layers - first - 1)) for first in range(1, layers - 1)]
    whole = even + two + three
    several = [(pp, stage_sizes(layers, pp, cut), cut) for pp, cut in whole if pp > 1]
    chunked = [
        (pp, replace(cut, chunks=chunks))
        for pp, sizes, cut in several
        for chunks in (2, 3)
        if all(size % chunks == 0 for size in sizes)
    ]
    return whole + 2 * chunked
