"""Plans over random layouts: every element right, written once, by the nearest and least busy holder."""

from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_pairs import layout_pairs, placed_pairs
from resharding_world import (
    all_copies,
    distinct_tensors,
    execute_in_one_process,
    megatron_world,
    shards_of,
    small_shape,
    vllm_world,
)

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.weight_plan import weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Rectangle, ReshardPlan, ShardSpec, build_plan
from cfpo_hybrid.resharding.transfer import schedule

PADDING = -1.0


@given(layout_pairs() | placed_pairs())
@settings(max_examples=60, deadline=None)
def test_every_destination_element_is_right_and_written_once(pair):
    tensors = distinct_tensors(pair.shape)
    sources = [shards_of(specs, tensors) for specs in pair.sources]
    expected = [shards_of(specs, tensors, PADDING) for specs in pair.destinations]
    found = [{name: torch.full_like(tensor, PADDING) for name, tensor in rank.items()} for rank in expected]

    plan = build_plan(pair.sources, pair.destinations, pair.handover.ranks_per_node)
    writes = execute_in_one_process(plan, sources, found)

    for rank, specs in enumerate(pair.destinations):
        for spec in specs:
            assert torch.equal(found[rank][spec.name], expected[rank][spec.name]), spec.name
            once = shards_of([spec], {name: torch.ones_like(tensor) for name, tensor in tensors.items()})
            assert torch.equal(writes[rank][spec.name], once[spec.name]), spec.name


@given(layout_pairs())
@settings(max_examples=30, deadline=None)
def test_the_way_back_restores_megatrons_shards(pair):
    tensors = distinct_tensors(pair.shape)
    sources = [shards_of(specs, tensors) for specs in pair.destinations]
    expected = [shards_of(specs, tensors) for specs in pair.sources]
    found = [{name: torch.zeros_like(tensor) for name, tensor in rank.items()} for rank in expected]
    execute_in_one_process(build_plan(pair.destinations, pair.sources, 8), sources, found)
    assert all(
        torch.equal(found[rank][name], tensor) for rank in range(len(found)) for name, tensor in expected[rank].items()
    )


@given(layout_pairs())
@settings(max_examples=20, deadline=None)
def test_a_saved_plan_is_read_back(tmp_path_factory, pair):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = weight_plan(pair.handover)
    plan.save(path)
    assert ReshardPlan.load(path) == plan


def test_a_saved_plan_of_another_version_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"version": 0}')
    with pytest.raises(ReshardError, match="version 0"):
        ReshardPlan.load(path)


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_equal_tp_without_stages_is_purely_local(tp, dp):
    shape = small_shape(num_heads=8, num_kv_heads=4, head_dim=2, vocab_size=128)
    layout = ParallelLayout(tp=tp, dp=dp)
    plan = build_plan(megatron_world(shape, layout), vllm_world(shape, layout.world_size, tp), 8)
    assert all(route.is_local for routes in plan.routes for route in routes)


def longest_swath(plan):
    """Elements of the longest row that moves, times the ranks that read it together: what a border cannot cut."""
    readers = defaultdict(set)
    for route in (route for routes in plan.routes for route in routes if not route.is_local):
        readers[route.cargo].add(route.destination_rank)
    return max(
        (
            len(ranks) * max(region.area.volume // region.area.size[0] for region in plan.cargos[cargo].tensors)
            for cargo, ranks in readers.items()
        ),
        default=0,
    )


def sent_by_rank(plan):
    sent = Counter()
    for routes in plan.routes:
        for route in routes:
            if not route.is_local:
                sent[route.source_rank] += route.volume
    return [sent[rank] for rank in range(plan.world_size)]


@pytest.mark.parametrize(
    ("layout", "rollout_tp"),
    [
        (ParallelLayout(tp=2, dp=2), 1),
        (ParallelLayout(tp=2, dp=3), 1),  # each rank lacks the other half, which three ranks could send
        (ParallelLayout(tp=4, dp=3), 1),
        (ParallelLayout(dp=2, pp=2), 2),
        (ParallelLayout(tp=2, dp=3, pp=2), 2),
    ],
)
def test_senders_share_the_load(layout, rollout_tp):
    # The head is as large as the embedding, so that both stages hold equally much.
    shape = small_shape(vocab_size=64, num_layers=4, num_kv_heads=4)
    sent = sent_by_rank(
        build_plan(megatron_world(shape, layout), vllm_world(shape, layout.world_size, rollout_tp), layout.world_size)
    )
    # Up to the final norm and to the rows in which cuts fall.
    assert max(sent) <= 1.02 * sum(sent) / len(sent)


def least_largest_load(pair):
    """Elements that the largest sender must send in any plan: what only some ranks hold, shared equally by them."""
    kinds = sorted({tuple(specs) for specs in pair.sources}, key=repr)
    ranks = [sum(tuple(specs) == kind for specs in pair.sources) for kind in kinds]
    held = [{element for spec in kind for piece in spec.pieces for element in elements(piece)} for kind in kinds]
    holders = defaultdict(int)
    for number, own in enumerate(held):
        for element in own:
            holders[element] |= 1 << number
    demand = Counter()
    for source, destination in zip(pair.sources, pair.destinations, strict=True):
        own = held[kinds.index(tuple(source))]
        needed = {element for spec in destination for piece in spec.pieces for element in elements(piece)}
        demand.update(holders[element] for element in needed - own)
    return max(
        sum(count for mask, count in demand.items() if mask & ~subset == 0)
        / sum(size for number, size in enumerate(ranks) if subset >> number & 1)
        for subset in range(1, 1 << len(kinds))
    )


@given(layout_pairs(families=("qwen2", "llama", "qwen3")))
@settings(max_examples=30, deadline=None)
def test_no_plan_has_a_much_smaller_largest_sender(pair):
    sent = sent_by_rank(build_plan(pair.sources, pair.destinations, len(pair.sources)))
    longest_row = max(pair.shape.query_size, pair.shape.intermediate_size, pair.shape.hidden_size)
    assert max(sent) <= 1.02 * least_largest_load(pair) + 2 * longest_row


@given(layout_pairs())
@settings(max_examples=50, deadline=None)
def test_replicas_send_equally_much(pair):
    plan = build_plan(pair.sources, pair.destinations, len(pair.sources))
    sent = sent_by_rank(plan)
    replicas = defaultdict(list)
    for rank, specs in enumerate(pair.sources):
        replicas[tuple(specs)].append(sent[rank])
    # Replicas have equal quotas, which end at the nearest border of rows, with all that lies before: each of the two ends
    # of a sender's stretch is half a swath off at most, so it sends a swath more or less, and two differ by two. Levels
    # are rounded up, which the last sender has to bear.
    limit = 2 * longest_swath(plan) + len(sent)
    assert all(max(volumes) - min(volumes) <= limit for volumes in replicas.values())


@given(layout_pairs() | placed_pairs())
@settings(max_examples=50, deadline=None)
def test_what_the_own_memory_or_node_has_comes_from_there(pair):
    plan = weight_plan(pair.handover)
    nodes = pair.handover.ranks_per_node
    held = [
        {(name, row, column) for spec in specs for piece in spec.pieces for name, row, column in elements(piece)}
        for specs in pair.sources
    ]
    for route, copy in all_copies(plan):
        rank, source = route.destination_rank, route.source_rank
        if rank == source:
            continue
        taken = {
            element
            for spec in pair.destinations[rank]
            if spec.name == copy.destination.name
            for piece in spec.pieces
            for element in elements(piece, copy.destination.area)
        }
        assert taken.isdisjoint(held[rank])
        if rank // nodes != source // nodes:
            near = (other for other in range(plan.world_size) if other // nodes == rank // nodes)
            assert all(taken.isdisjoint(held[other]) for other in near)


def elements(piece, area=None):
    """The elements of a Hugging Face tensor in a piece, or in an area of its parameter."""
    part = piece.local.intersect(area) if area else piece.local
    if part is None:
        return []
    rows, *columns = part.moved(piece.local_start, piece.hf.start).slices
    columns = columns[0] if columns else slice(0, 1)
    return [
        (piece.hf_name, row, column)
        for row in range(rows.start, rows.stop)
        for column in range(columns.start, columns.stop)
    ]


def test_processes_are_listed_on_both_sides():
    with pytest.raises(ReshardError, match="3 ranks as sources and 2 as destinations; list every process in both"):
        build_plan(megatron_world(small_shape(), ParallelLayout(pp=3)), vllm_world(small_shape(), 2, 1), 8)


def test_a_lost_layer_is_named():
    shape = small_shape()
    sources = megatron_world(shape, ParallelLayout(pp=3))
    sources[1] = []
    with pytest.raises(ReshardError, match=r"model\.layers\.1\.input_layernorm\.weight\[0:16\]"):
        build_plan(sources, vllm_world(shape, 3, 1), 3)


def test_a_lost_rectangle_is_named():
    shape = small_shape()
    specs = megatron_world(shape, ParallelLayout())[0]
    embedding = specs[0]
    half = embedding.pieces[0]._replace(hf=Rectangle((0, 0), (10, 16)))
    specs[0] = ShardSpec(embedding.name, (10, 16), (half,))
    with pytest.raises(ReshardError, match=r"embed_tokens\.weight\[10:19, 0:16\]"):
        build_plan([specs], vllm_world(shape, 1, 1), 1)


def test_both_copies_of_a_tied_head_are_sources():
    shape = small_shape(tied_embeddings=True)
    plan = build_plan(megatron_world(shape, ParallelLayout(pp=3)), vllm_world(shape, 3, 1), 3)
    embeddings = [
        (route, copy.source) for route, copy in all_copies(plan) if copy.destination.name == "model.embed_tokens.weight"
    ]
    assert {source.name for route, source in embeddings if route.is_local} == {
        "embedding.word_embeddings.weight",
        "output_layer.weight",
    }
    # Only the middle stage needs messages. The last stage also sends its final norm of 16, twice: two rows less here.
    assert [(route.source_rank, str(source)) for route, source in embeddings if not route.is_local] == [
        (0, "embedding.word_embeddings.weight[0:11, 0:16]"),
        (2, "output_layer.weight[11:19, 0:16]"),
    ]


@given(layout_pairs() | placed_pairs(), st.integers(8, 200))
@settings(max_examples=30, deadline=None)
def test_steps_match_on_both_sides_and_stay_within_the_bucket(pair, limit):
    plan = build_plan(pair.sources, pair.destinations, 4)
    world = range(plan.world_size)
    steps = [schedule(plan, rank, limit) for rank in world]
    for rank in world:
        for other in world:
            sent = [send.copies for send, _ in steps[rank] if send.copies and send.peer == other]
            received = [receive.copies for _, receive in steps[other] if receive.copies and receive.peer == rank]
            assert sent == received
        assert all(send.volume <= limit for send, _ in steps[rank])
    moved = sum(receive.volume for rank in steps for _, receive in rank)
    assert moved == sum(route.volume for routes in plan.routes for route in routes if not route.is_local)
