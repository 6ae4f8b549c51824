"""A worker that only generates works with any engine that fulfils the protocol."""

from types import SimpleNamespace

import torch
from echo_engine import EchoEngine
from safetensors.torch import save_file

from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ShardSpec
from workers.config import ModelConfig, RolloutConfig
from workers.rollout.engine import RolloutEngine, SamplingSettings
from workers.single_engine import GenerationSettings, GenerationWorker


def test_the_echo_engine_is_an_engine():
    assert {name for name in vars(RolloutEngine) if not name.startswith("_")} <= set(dir(EchoEngine))


def test_an_engine_gets_its_weights_generates_and_is_closed(tmp_path):
    weight = torch.arange(4.0)
    save_file({"model.norm.weight": weight}, tmp_path / "model.safetensors")
    settings = GenerationSettings(
        model=ModelConfig(path=str(tmp_path)),
        rollout=RolloutConfig(),
        rollout_layout=ParallelLayout(),
        max_model_len=8,
        device="cpu",
    )
    worker = GenerationWorker(SimpleNamespace(rank=0), settings)  # type: ignore[arg-type]
    engine = EchoEngine([ShardSpec.of_whole_tensor("model.norm.weight", (4,))])
    worker.serve(engine)
    assert torch.equal(engine.parameters()["model.norm.weight"], weight)
    prompts = DataProto(
        {
            "prompts": torch.tensor([[5, 6, 7], [8, 0, 0]]),
            "prompt_lengths": torch.tensor([3, 1]),
            "seeds": torch.tensor([0, 1]),
        }
    )
    answer = worker.generate(prompts, SamplingSettings(max_tokens=2))
    assert answer["responses"].tolist() == [[5, 6], [8, 0]]
    assert answer["truncated"].tolist() == [True, False]
    worker.close()
    assert engine.calls == ["finish_update", "close"]
