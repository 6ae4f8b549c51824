"""Plans that are wrong in one place are found, and the place is named."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_pairs import layout_pairs, placed_pairs
from resharding_world import megatron_world, small_shape, vllm_world

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import build_plan, check_plan
from cfpo_hybrid.resharding.plan import Cargo


@given(layout_pairs() | placed_pairs())
@settings(max_examples=40, deadline=None)
def test_plans_are_right(pair):
    plan = build_plan(pair.sources, pair.destinations, pair.handover.ranks_per_node)
    check_plan(plan, pair.sources, pair.destinations, hf_shapes(pair.shape))


@given(layout_pairs(), st.data())
@settings(max_examples=30, deadline=None)
def test_a_plan_without_one_of_its_routes_or_with_one_twice_is_wrong(pair, data):
    plan = build_plan(pair.sources, pair.destinations, pair.handover.ranks_per_node)
    rank = data.draw(st.integers(0, plan.world_size - 1))
    routes = list(plan.routes[rank])
    index = data.draw(st.integers(0, len(routes) - 1))
    broken = {"never writes": routes[:index] + routes[index + 1 :], "more than once": [*routes, routes[index]]}
    for message, changed in broken.items():
        wrong = replace(plan, routes=(*plan.routes[:rank], tuple(changed), *plan.routes[rank + 1 :]))
        with pytest.raises(ReshardError, match=rf"rank {rank}: the plan .*{message}|{message}"):
            check_plan(wrong, pair.sources, pair.destinations, hf_shapes(pair.shape))


SHAPE = small_shape()
SOURCES, DESTINATIONS = megatron_world(SHAPE, ParallelLayout(pp=3)), vllm_world(SHAPE, 3, 1)
PLAN = build_plan(SOURCES, DESTINATIONS, 3)


def check(plan, *, sources=SOURCES, destinations=DESTINATIONS, tensors=None, ranks=None):
    check_plan(plan, sources, destinations, tensors or hf_shapes(SHAPE), ranks)


def with_cargos(change):
    """The plan with every cargo's tensors, destinations and offer changed."""
    return replace(
        PLAN,
        cargos=tuple(
            Cargo(tensors, destinations, (offer,))
            for tensors, destinations, offer in (
                change(cargo.tensors, cargo.destinations, cargo.offers[0]) for cargo in PLAN.cargos
            )
        ),
    )


def test_the_missing_rectangle_is_named():
    route = next(route for route in PLAN.routes[0] if route.source_rank == 2)
    assert PLAN.cargos[route.cargo].tensors[-1].name == "lm_head.weight"
    # The route ends three rows of 16 too early: the last three rows of the head.
    routes = tuple(
        route._replace(last=route.last - 3 * 16) if route.source_rank == 2 else route for route in PLAN.routes[0]
    )
    with pytest.raises(
        ReshardError, match=r"rank 0: .* never writes lm_head\.weight\[16:19, 0:16\] into lm_head\.weight"
    ):
        check(replace(PLAN, routes=(routes, *PLAN.routes[1:])))


def test_the_doubled_rectangle_is_named():
    route = next(route for route in PLAN.routes[1] if route.source_rank == 2)
    last_row = route._replace(first=route.last - 16)
    with pytest.raises(ReshardError, match=r"rank 1: .* writes lm_head\.weight\[18:19, 0:16\] .* more than once"):
        check(replace(PLAN, routes=(PLAN.routes[0], (*PLAN.routes[1], last_row), PLAN.routes[2])))


def test_a_layer_under_its_stages_number_is_found():
    # Stage 1 holds layer 1 as its layer 0: a description that forgets so puts it where layer 0 belongs.
    local = megatron_world(replace(SHAPE, num_layers=1), ParallelLayout())[0][1:-2]
    sources = [SOURCES[0], local, SOURCES[2]]
    with pytest.raises(ReshardError, match=r"writes model\.layers\.0\..* of rank 1 where model\.layers\.1\..* holds"):
        check(PLAN, sources=sources)


def test_a_copy_from_the_wrong_rows_is_found():
    def one_down(tensors, destinations, offer):
        def cut(regions, first):
            return tuple(
                region.along(0, first, 18) if tensor.name == "lm_head.weight" else region
                for tensor, region in zip(tensors, regions, strict=True)
            )

        return cut(tensors, 0), cut(destinations, 0), cut(offer, 1)

    with pytest.raises(ReshardError, match=r"writes lm_head\.weight\[1:19, 0:16\] of rank 2 where .*\[0:18, 0:16\]"):
        check(with_cargos(one_down))


def test_a_copy_into_padding_or_across_pieces_is_found():
    def into_query_and_key(tensors, destinations, offer):
        qkv = "model.layers.0.self_attn.qkv_proj.weight"
        moved = [
            region.along(0, 15, region.area.size[0]) if region.name == qkv and region.area.start == (0, 0) else region
            for region in destinations
        ]
        return tensors, tuple(moved), offer

    with pytest.raises(ReshardError, match=r"no rectangle of one Hugging Face tensor"):
        check(with_cargos(into_query_and_key))


def test_only_the_ranks_asked_for_are_looked_at():
    broken = replace(PLAN, routes=((), *PLAN.routes[1:]))
    check(broken, ranks=[1, 2])
    with pytest.raises(ReshardError, match="rank 0"):
        check(broken, ranks=[0])


def test_every_tensor_of_the_model_must_be_there():
    with pytest.raises(ReshardError, match=r"model\.layers\.3\..*is held by no rank"):
        check(PLAN, tensors=hf_shapes(replace(SHAPE, num_layers=4)))
    with pytest.raises(ReshardError, match=r"model\.layers\.2\..*does not have"):
        check(PLAN, tensors=hf_shapes(replace(SHAPE, num_layers=2)))
