"""What is packed for the ranks of a host, and the signals between them."""

import socket
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_pairs import layout_pairs
from resharding_world import megatron_world, small_shape, vllm_world

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import build_plan
from cfpo_hybrid.resharding.host_memory import HostMemory
from cfpo_hybrid.resharding.parcels import parcels


@given(layout_pairs(), st.integers(8, 200))
@settings(max_examples=30, deadline=None)
def test_every_remote_element_is_in_one_bounded_parcel_of_each_reader(pair, limit):
    plan = build_plan(pair.sources, pair.destinations, 4)
    world = range(plan.world_size)
    sent = {rank: parcels(plan, rank, world, limit) for rank in world}
    assert all(parcel.volume <= limit for rank in world for parcel in sent[rank])
    found, expected = Counter(), Counter()
    for rank in world:
        for parcel in sent[rank]:
            assert rank not in parcel.readers
            for copy in parcel.copies:
                for reader in parcel.readers:
                    found[rank, reader, copy.source_name, copy.destination_name] += copy.volume
    for copy in plan.copies:
        if not copy.is_local:
            key = (copy.source_rank, copy.destination_rank, copy.source_name, copy.destination_name)
            expected[key] += copy.volume
    assert found == expected


def test_replicas_on_a_node_read_the_same_parcels():
    # Rank 0 and 2 have the same half, 1 and 3 the other; each lacks a half, which its two holders pack a half of.
    shape = small_shape(vocab_size=64)
    plan = build_plan(megatron_world(shape, ParallelLayout(tp=2, dp=2)), vllm_world(shape, 4, 1), 4)
    for rank in range(4):
        sent = parcels(plan, rank, range(4), 1 << 20)
        assert [set(parcel.readers) for parcel in sent] == [{0, 1, 2, 3} - {rank, rank ^ 2}]


def two_ranks(patience):
    """The memory of rank 0, and what rank 1 has of the socket between them."""
    mine, theirs = socket.socketpair()
    slots = {rank: torch.zeros(128, dtype=torch.uint8) for rank in (0, 1)}
    return HostMemory(0, slots, {1: mine}, patience), theirs


def test_signals_keep_their_order_and_those_of_the_next_run_wait():
    host, peer = two_ranks(patience=5)
    assert host.signals({1: 1}, block=False) == []
    peer.sendall(bytes((0, 3, 1)))
    assert host.signals({1: 2}, block=True) == [(1, 0), (1, 3)]
    assert host.signals({1: 2}, block=True) == [(1, 1)]
    host.close()
    peer.close()


def test_a_silent_peer_is_named_after_a_while_and_a_dead_one_at_once():
    host, peer = two_ranks(patience=0.05)
    with pytest.raises(ReshardError, match=r"rank 0 waited 0\.05 s .* ranks \[1\]"):
        host.signals({1: 1}, block=True)
    host.close()
    peer.close()
    host, peer = two_ranks(patience=60)
    peer.close()
    with pytest.raises(ReshardError, match="rank 1 died or gave up"):
        host.signals({1: 1}, block=True)
    with pytest.raises(ReshardError, match="rank 1 died or gave up"):
        host.signal(1, 0)
    host.close()
    for act in (lambda: host.signal(1, 0), lambda: host.signals({1: 1}, block=True)):
        with pytest.raises(ReshardError, match="left the weight sync after an earlier error"):
            act()
