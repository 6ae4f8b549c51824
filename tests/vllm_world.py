"""The real vLLM on tiny random models, started in a process of its own, and what it should answer."""

import os
from pathlib import Path
from typing import Any

import torch
from resharding_world import megatron_world, shards_of
from tiny_model import checkpoint_tensors
from torch import Tensor

from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.models.engine_specs import vllm_specs
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import build_plan
from cfpo_hybrid.resharding.transfer import Resharder

MAX_LEN = 220
STOP = 3
TEMPERATURE = 0.7


def start_engine(folder: Path, tp: int = 1, *, stops: Any = None, tokenizer: Any = None, **rollout: Any):
    """An engine of this rank; vLLM is imported only here, after its environment is set.

    Args:
        folder: of the model.
        tp: ranks that share it.
        stops: what ends a response; by default the token STOP.
        tokenizer: of texts that do.
        rollout: settings other than those here.
    """
    from workers.process import worker_environment

    os.environ.update(worker_environment("cpu", 1))
    from workers.config import RolloutConfig
    from workers.rollout.engine import Stops
    from workers.rollout.vllm_engine import EngineSettings, VllmEngine

    config = RolloutConfig(**{"kv_cache_bytes": 32 << 20, "max_num_seqs": 16, **rollout}, tensor_parallel_size=tp)
    settings = EngineSettings(
        folder=str(folder),
        shape=model_shape(load_hf_config(str(folder))),
        rank=int(os.environ["RANK"]),
        dtype=torch.float32,
        max_model_len=MAX_LEN,
        stops=stops or Stops(token_ids=(STOP,)),
        tokenizer=tokenizer,
        job=folder.name,
        device=torch.device("cpu"),
    )
    return VllmEngine(config, settings)


def hybrid_settings():
    """Those of a worker that is alone, with an engine like that of :func:`start_engine`."""
    from workers.config import ActorConfig, AlgorithmConfig, ModelConfig, PolicyLossConfig, RolloutConfig, WatchConfig
    from workers.messages import HybridSettings
    from workers.step_plan import StepPlan

    rollout, algorithm, policy_loss = RolloutConfig(), AlgorithmConfig(), PolicyLossConfig()
    return HybridSettings(
        model=ModelConfig(),
        actor=ActorConfig(),
        rollout=rollout,
        algorithm=algorithm,
        policy_loss=policy_loss,
        watch=WatchConfig(),
        plan=StepPlan.of(algorithm, policy_loss, rollout),
        train_layout=ParallelLayout(),
        rollout_layout=ParallelLayout(),
        max_prompt_length=MAX_LEN // 2,
        max_response_length=MAX_LEN // 2,
        total_optimizer_steps=1,
        ranks_per_node=1,
        seed=0,
        device="cpu",
    )


def sampling(**changes):
    from workers.rollout.engine import SamplingSettings

    return SamplingSettings(**{"max_tokens": 20, "temperature": TEMPERATURE, **changes})


def prompts(rows: int = 24, width: int = 9) -> DataProto:
    """Random prompts of different lengths, each with a seed of its own."""
    generator = torch.Generator().manual_seed(1)
    return DataProto(
        {
            "prompts": torch.randint(4, 101, (rows, width), generator=generator),
            "prompt_lengths": torch.randint(1, width + 1, (rows,), generator=generator),
            "seeds": torch.randint(2**62, (rows,), generator=generator),
        }
    )


def same_answers(first: DataProto, second: DataProto) -> bool:
    names = ("responses", "response_lengths", "rollout_log_probs", "response_mask", "truncated")
    return all(torch.equal(first[name], second[name]) for name in names)


@torch.no_grad()
def log_probs_of(model, tokens: list[int], temperature: float = 1.0) -> Tensor:
    """Hugging Face's log-probs of tokens 1, 2, ..."""
    logits = model(torch.tensor([tokens])).logits[0, :-1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def sampled_gap(model, answers: DataProto) -> float:
    """The largest difference of the log-probs of sampled tokens to Hugging Face's."""
    gaps = []
    for row in range(len(answers)):
        prompt = answers["prompts"][row, : answers["prompt_lengths"][row]].tolist()
        response = answers["responses"][row, : answers["response_lengths"][row]].tolist()
        expected = log_probs_of(model, prompt + response, TEMPERATURE)[len(prompt) - 1 :]
        gaps.append((answers["rollout_log_probs"][row, : len(response)] - expected).abs().max())
    return float(max(gaps))


@torch.no_grad()
def greedy(model, tokens: list[int], count: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[-count:]


def write_directly(engine, model, tp: int = 1) -> None:
    """New weights by the resharder, from training shards of another tensor-parallel size than the engine's."""
    shape = model_shape(model.config.to_dict())
    rank = int(os.environ["RANK"])
    tensors = checkpoint_tensors(model)
    sources = megatron_world(shape, ParallelLayout(tp=tp))
    size = int(os.environ["WORLD_SIZE"])
    plan = build_plan(sources, [vllm_specs(shape, size, other) for other in range(size)], size)
    resharder = Resharder(plan, rank=rank, dtype=torch.float32, bucket_bytes=1 << 20)
    resharder.run(shards_of(sources[rank], tensors), engine.parameters())
    engine.finish_update()


def real_parameters(engine) -> dict[str, Tensor]:
    """Copies without the padding, which nobody writes."""
    copies = {}
    for spec in engine.specs():
        tensor = engine.parameters()[spec.name].clone()
        for area in spec.padding:
            tensor[area.slices] = 0
        copies[spec.name] = tensor
    return copies
