"""The order of waking and sleeping around a reshard, with fakes in the places of the engines, and the probe."""

import pytest
import torch
import torch.distributed as dist

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.transfer import ReshardStats
from workers.megatron.host_memory import LaggedWeights
from workers.weight_check import TensorDifference, WeightDifferences
from workers.weight_sync import Probe, WeightSync, rounding


class Recorder:
    """Stands for both engines and the receiver, and writes down what it is asked to do."""

    dtype = torch.float32

    def __init__(self, engine_offset: float = 0.0) -> None:
        self.calls: list[str] = []
        self.differences = WeightDifferences(0, ())
        self.offset = engine_offset
        self.lagged = LaggedWeights(lambda: {"version": self.version}, lag=2)
        self.version = torch.zeros(1)
        self.received: list[float] = []

    def onload(self, *, training: bool) -> None:
        self.calls.append(f"policy.onload(training={training})")

    def offload(self) -> None:
        self.calls.append("policy.offload")

    def wake_weights(self) -> None:
        self.calls.append("engine.wake_weights")

    def wake_kv_cache(self) -> None:
        self.calls.append("engine.wake_kv_cache")

    def sleep_kv_cache(self) -> None:
        self.calls.append("engine.sleep_kv_cache")

    def check(self) -> WeightDifferences:
        self.calls.append("check weights")
        return self.differences

    def finish_update(self) -> None:
        self.calls.append("engine.finish_update")

    def receive(self) -> ReshardStats:
        self.calls.append("receive")
        self.received.append(float(self.version))
        return ReshardStats(bytes_local=12, bytes_received=4)

    def of_policy(self, policy: object) -> torch.Tensor:
        self.calls.append("probe policy")
        return torch.zeros(2, 3)

    def of_engine(self, engine: object) -> torch.Tensor:
        self.calls.append("probe engine")
        return torch.full((2, 3), self.offset)


@pytest.fixture(autouse=True)
def world_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_sync(recorder: Recorder, probe_action: str = "stop") -> WeightSync:
    return WeightSync(
        recorder,  # type: ignore[arg-type]
        recorder,  # type: ignore[arg-type]
        receive=recorder.receive,
        check=recorder.check,
        probe=recorder,  # type: ignore[arg-type]
        tolerance=1e-4,
        stops=probe_action == "stop",
    )


def test_weights_wake_first_and_the_cache_last():
    recorder = Recorder()
    report = make_sync(recorder).run(policy_version=7, probe=True)
    assert recorder.calls == [
        "policy.onload(training=False)",
        "engine.wake_weights",
        "receive",
        "engine.finish_update",
        "probe policy",
        "policy.offload",
        "engine.wake_kv_cache",
        "probe engine",
    ]
    assert (report.policy_version, report.bytes_total, report.bytes_moved) == (7, 16, 4)
    assert report.probe_difference == 0.0


def test_a_rollout_that_lags_behind_gets_older_weights():
    recorder = Recorder()
    sync, reports = make_sync(recorder), []
    for version in range(4):
        recorder.version.fill_(version)
        reports.append(sync.run(policy_version=version, probe=True))
        recorder.lagged.remember()
    reports.append(sync.run(policy_version=3, probe=True, newest=True))
    assert recorder.received == [report.policy_version for report in reports] == [0, 0, 0, 1, 3]
    assert [report.weight_lag for report in reports] == [0, 1, 2, 2, 0]
    assert reports[3].trained_version == 3


def test_without_a_probe_no_engine_scores():
    recorder = Recorder(engine_offset=1.0)
    assert make_sync(recorder).run(policy_version=1, probe=False).probe_difference is None
    assert not {"probe policy", "probe engine"} & set(recorder.calls)


def test_engines_that_disagree_stop_the_run_and_name_the_tensors():
    recorder = Recorder(engine_offset=0.01)
    recorder.differences = WeightDifferences(1, (TensorDifference("model.norm.weight", 3, "norm.weight", 0.5),))
    with pytest.raises(ReshardError, match=r"policy version 4 .* differ by 0\.01 nats .*model\.norm\.weight on rank 3"):
        make_sync(recorder).run(policy_version=4, probe=True)
    assert recorder.calls[-6:] == [
        "probe engine",
        "engine.sleep_kv_cache",
        "policy.onload(training=False)",
        "check weights",
        "policy.offload",
        "engine.wake_kv_cache",
    ]
    with pytest.raises(ReshardError, match="inf nats"):
        make_sync(Recorder(engine_offset=float("inf"))).run(policy_version=0, probe=True)


def test_weights_that_agree_are_said_to(caplog):
    with pytest.raises(ReshardError, match=r"the weights agree; the engines compute differently.*probe_action=warn"):
        make_sync(Recorder(engine_offset=0.01)).run(policy_version=0, probe=True)
    report = make_sync(Recorder(engine_offset=0.01), probe_action="warn").run(policy_version=0, probe=True)
    assert report.probe_difference == pytest.approx(0.01)
    assert "the weights agree" in caplog.text


def test_the_probe_is_the_same_everywhere_and_in_range():
    assert Probe(50, 100).tokens.equal(Probe(50, 100).tokens)
    assert Probe(50, 100).tokens.shape == (4, 32)
    assert Probe(50, 10).tokens.shape == (4, 10)
    assert int(Probe(50, 100).tokens.max()) < 50


def test_the_batch_holds_every_token_once():
    probe = Probe(50, 100)
    batch = probe.as_batch()
    assert torch.cat([batch["prompts"], batch["responses"]], dim=1).equal(probe.tokens)


def test_the_coarser_engine_decides_what_rounding_explains():
    assert rounding(torch.float32, torch.float32) == 1e-4
    assert rounding(torch.bfloat16, torch.float32) == rounding(torch.float32, torch.bfloat16) == 0.2
