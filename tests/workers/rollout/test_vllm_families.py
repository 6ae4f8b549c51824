"""Every family in the real vLLM, written directly, against its `transformers` implementation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from tiny_model import LLAMA_31, checkpoint_tensors, save_tiny_model, tiny_model
from vllm_world import greedy, log_probs_of, real_parameters, sampling, start_engine, write_directly

from cfpo_hybrid.protocol import DataProto

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    # First: vLLM makes the groups that mixtures need only when the first engine of a process is one.
    "mixture": {"family": "qwen3_moe"},
    "llama-31": {"family": "llama", "rope_scaling": LLAMA_31},
    "mistral": {"family": "mistral", "sliding_window": 240},
    "qwen3": {"family": "qwen3"},
}
SEQUENCES = [[5, 6, 7, 8, 99, 100], [0, 50], list(range(4, 64))]


def answers(folder: Path, names: list[str], tp: int) -> dict[str, dict[str, Any]]:
    """What an engine of each model answers after its weights came by the resharder and by vLLM's own loader."""
    found, engines = {}, []
    for name in names:
        engine = start_engine(folder / name, tp=tp)
        engines.append(engine)  # closing one would take torch's process group from the next
        model = tiny_model(**MODELS[name])
        engine.load_weights(checkpoint_tensors(model).items())
        engine.finish_update()
        loaded = real_parameters(engine)
        write_directly(engine, tiny_model(**MODELS[name], seed=1), tp=tp)
        write_directly(engine, model, tp=tp)
        written = real_parameters(engine)
        prompts = DataProto(
            {
                "prompts": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 0]]),
                "prompt_lengths": torch.tensor([4, 3]),
                "seeds": torch.tensor([0, 1]),
            }
        )
        responses = engine.generate(prompts, sampling(greedy=True, ignore_stop=True), 20)["responses"].tolist()
        found[name] = {
            "same": all(torch.equal(loaded[key], written[key]) for key in loaded),
            "gap": max(
                float((score - log_probs_of(model, tokens)).abs().max())
                for tokens, score in zip(SEQUENCES, engine.score(SEQUENCES), strict=True)
            ),
            "greedy": responses == [greedy(model, [5, 6, 7, 8], 20), greedy(model, [9, 8, 7], 20)],
        }
    engines[-1].close()
    return found


@pytest.mark.parametrize(("tp", "names"), [(1, list(MODELS)), (2, ["mixture", "qwen3"])])
def test_scores_and_greedy_tokens_are_hugging_faces(tmp_path, tp, names):
    for name in names:
        save_tiny_model(tmp_path / name, **MODELS[name])
    for rank in run_gloo(tp, answers, tmp_path, names, tp, timeout=400):
        for name, facts in rank.items():
            assert facts["same"] and facts["gap"] < 1e-4 and facts["greedy"], f"{name}: {facts}"
