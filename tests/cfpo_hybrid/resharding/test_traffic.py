"""What plans move, counted and worked out by hand."""

from collections import Counter

from hypothesis import given, settings
from layout_pairs import layout_pairs, placed_pairs
from resharding_world import all_copies, megatron_world, small_shape, vllm_world

from cfpo_hybrid.models.weight_plan import rollout_specs, training_specs, weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import build_plan
from cfpo_hybrid.resharding.traffic import PlanTraffic, RankTraffic, plan_traffic


@given(layout_pairs() | placed_pairs())
@settings(max_examples=60, deadline=None)
def test_every_rank_receives_the_lower_bound_and_the_counts_are_those_of_the_copies(pair):
    plan = weight_plan(pair.handover)
    traffic = plan_traffic(plan, training_specs(pair.handover), rollout_specs(pair.handover), itemsize=2)
    assert traffic.ratio == 1.0
    assert all(seen.received == seen.lower_bound and seen.ratio == 1.0 for seen in traffic.ranks)
    moved = Counter()
    for route, copy in all_copies(plan):
        moved[route.source_rank, route.destination_rank] += 2 * copy.volume
    world = range(plan.world_size)
    for rank, seen in enumerate(traffic.ranks):
        assert seen.local == moved[rank, rank]
        assert seen.sent == sum(moved[rank, other] for other in world if other != rank)
        assert seen.received == sum(moved[other, rank] for other in world if other != rank)


def test_two_stages_by_hand():
    # Two stages of one layer each, and no replicas: each rank keeps its half and takes the other's.
    shape = small_shape(num_layers=2, vocab_size=20)
    sources, destinations = megatron_world(shape, ParallelLayout(pp=2)), vllm_world(shape, 2, 1)
    # q, k, v: 16 + 8 + 8 rows of 16 and biases; o: 16 x 16; gate, up, down: 3 x 8 x 16; two norms of 16.
    layer = 32 * 16 + 32 + 16 * 16 + 3 * 8 * 16 + 2 * 16
    first, last = layer + 20 * 16, layer + 20 * 16 + 16  # embedding; head and final norm
    traffic = plan_traffic(build_plan(sources, destinations, 1), sources, destinations, itemsize=4)
    assert [rank.local for rank in traffic.ranks] == [4 * first, 4 * last]
    assert [rank.sent for rank in traffic.ranks] == [4 * first, 4 * last]
    assert [rank.received for rank in traffic.ranks] == [4 * last, 4 * first]
    assert [rank.sent_to_other_nodes for rank in traffic.ranks] == [4 * first, 4 * last]
    assert traffic.imbalance == last / ((first + last) / 2)
    near = plan_traffic(build_plan(sources, destinations, 2), sources, destinations, itemsize=4)
    assert [rank.received_from_other_nodes for rank in near.ranks] == [0, 0]


def test_pools_of_their_own_by_hand():
    # Two stages send one process all that it needs. It is no sender, so the mean is that of the two.
    shape = small_shape(num_layers=2, vocab_size=20)
    sources, destinations = [*megatron_world(shape, ParallelLayout(pp=2)), []], [[], [], *vllm_world(shape, 1, 1)]
    traffic = plan_traffic(build_plan(sources, destinations, 2), sources, destinations, itemsize=1)
    first, last = (rank.sent for rank in traffic.ranks[:2])
    assert last - first == 16  # the final norm
    assert traffic.ranks[2].received == traffic.ranks[2].received_from_other_nodes == first + last
    assert first + last == shape.num_parameters
    assert traffic.imbalance == last / ((first + last) / 2)


def test_a_plan_that_moves_too_much_has_a_ratio_over_one():
    traffic = PlanTraffic((RankTraffic(received=30, lower_bound=20, sent=10), RankTraffic(sent=20)))
    assert traffic.ratio == 1.5
    assert traffic.imbalance == 20 / 15
    assert RankTraffic(received=1).ratio == float("inf")
    assert PlanTraffic((RankTraffic(local=5),)).imbalance == 1.0
