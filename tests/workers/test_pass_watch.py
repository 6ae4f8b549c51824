"""The watch over the passes: what crosses a limit, what follows, and that all ranks agree."""

import math

import pytest

from workers.config import WatchConfig
from workers.messages import UpdateRecord
from workers.pass_watch import PassWatch


def alone(values):
    """What a single rank measured is the largest of all."""
    return list(values)


def update(iteration=0, mini_batch=0, **metrics):
    names = {"kl": "actor/kl_k3", "ess": "actor/ess", "grad_norm": "actor/grad_norm"}
    return UpdateRecord(iteration, mini_batch, {names[key]: value for key, value in metrics.items()})


def test_without_limits_only_what_is_not_finite_stops():
    watch = PassWatch(WatchConfig(), alone)
    assert watch.allows_more(update(kl=1e9, ess=1e-9, grad_norm=1.0))
    assert not watch.allows_more(update(1, 2, grad_norm=math.nan))
    (trip,) = watch.trips
    assert trip.action == "stop"
    assert "watch.non_finite" in str(trip) and "at iteration 1, mini-batch 2" in str(trip)


def test_the_target_kl_stops_the_passes():
    watch = PassWatch(WatchConfig(kl=0.1), alone)
    assert watch.allows_more(update(kl=0.1))  # not above
    assert not watch.allows_more(update(0, 1, kl=0.25))
    (trip,) = watch.trips
    assert (trip.limit, trip.action) == ("watch.kl", "stop_passes")
    assert trip.finding == "actor/kl_k3 is 0.25, above 0.1, at iteration 0, mini-batch 1"


def test_a_small_effective_sample_size_and_one_that_nobody_measured():
    watch = PassWatch(WatchConfig(ess=0.5, kl=0.1), alone)
    assert watch.allows_more(update(ess=0.5))
    assert watch.allows_more(update())
    assert watch.allows_more(update(kl=math.inf)) is False  # not finite, and no trip of the KL
    assert [trip.limit for trip in watch.trips] == ["watch.non_finite"]
    assert not watch.allows_more(update(ess=0.25))
    assert watch.trips[1].finding.startswith("actor/ess is 0.25, below 0.5")


def test_a_warning_goes_on_and_is_kept_once():
    watch = PassWatch(WatchConfig(kl=0.1, kl_action="warn"), alone)
    assert watch.allows_more(update(0, kl=0.2))
    assert watch.allows_more(update(1, kl=0.3))
    assert [trip.finding for trip in watch.trips] == ["actor/kl_k3 is 0.2, above 0.1, at iteration 0, mini-batch 0"]


@pytest.mark.parametrize("own", [{}, {"kl": 0.2, "ess": 0.3}])
def test_a_rank_without_metrics_comes_to_the_verdict_of_the_one_that_has_them(own):
    asked = []

    def largest(values):
        asked.append(values)
        return [0.2, -0.3, 0.0]

    watch = PassWatch(WatchConfig(kl=0.1, ess=0.5), largest)
    assert not watch.allows_more(update(**own))
    assert [trip.limit for trip in watch.trips] == ["watch.kl", "watch.ess"]
    assert asked == [[0.2, -0.3, 0.0]] if own else asked == [[-math.inf, -math.inf, 0.0]]
