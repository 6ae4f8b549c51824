"""Every family in the real vLLM, written directly, against its `transformers` implementation."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from tiny_model import LLAMA_31, checkpoint_tensors, save_tiny_model, tiny_model
from vllm_world import (
    greedy,
    log_probs_of,
    prompts,
    real_parameters,
    same_answers,
    sampled_gap,
    sampling,
    start_engine,
    write_directly,
)

from cfpo_hybrid.protocol import DataProto

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    # First: vLLM makes the groups that mixtures need only when the first engine of a process is one.
    "mixture": {"family": "qwen3_moe"},
    "llama-31": {"family": "llama", "rope_scaling": LLAMA_31},
    "mistral": {"family": "mistral", "sliding_window": 240},
    "qwen3": {"family": "qwen3"},
    "tied llama": {"family": "llama", "tie_word_embeddings": True},
}
SEQUENCES = [[5, 6, 7, 8, 99, 100], [0, 50], list(range(4, 64))]


def answers(folders: dict[str, Path], tp: int) -> dict[str, dict[str, Any]]:
    """What an engine of each model answers after its weights came by the resharder and by vLLM's own loader."""
    found, engines = {}, []
    for name, folder in folders.items():
        engine = start_engine(folder, tp=tp)
        left_over = [file.name for file in Path("/dev/shm").glob(f"*{folder.name}*")]
        engines.append(engine)  # closing one would take torch's process group from the next
        model = tiny_model(**MODELS[name])
        engine.load_weights(checkpoint_tensors(model).items())
        engine.finish_update()
        loaded = real_parameters(engine)
        write_directly(engine, tiny_model(**MODELS[name], seed=1), tp=tp)
        write_directly(engine, model, tp=tp)
        written = real_parameters(engine)
        pair = DataProto(
            {
                "prompts": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 0]]),
                "prompt_lengths": torch.tensor([4, 3]),
                "seeds": torch.tensor([0, 1]),
            }
        )
        responses = engine.generate(pair, sampling(greedy=True, ignore_stop=True), 20)["responses"].tolist()
        batch = prompts()
        sampled = batch.merge(engine.generate(batch, sampling(), 32))
        found[name] = {
            "left_over": left_over,
            "sampled": sampled["responses"].tolist(),
            "sampled_gap": sampled_gap(model, sampled),
            "repeats": same_answers(sampled, engine.generate(batch, sampling(), 32)),
            "same": all(torch.equal(loaded[key], written[key]) for key in loaded),
            "gap": max(
                float((score - log_probs_of(model, tokens)).abs().max())
                for tokens, score in zip(SEQUENCES, engine.score(SEQUENCES), strict=True)
            ),
            "greedy": responses == [greedy(model, [5, 6, 7, 8], 20), greedy(model, [9, 8, 7], 20)],
        }
    engines[-1].close()
    return found


@pytest.mark.parametrize(("tp", "names"), [(1, list(MODELS)), (2, ["mixture", "qwen3", "tied llama"])])
def test_scores_and_tokens_are_hugging_faces(tmp_path, tp, names):
    # A name that no other run of the tests gives to its files in shared memory.
    folders = {name: tmp_path / f"{name.replace(' ', '-')}-{os.getpid()}" for name in names}
    for name, folder in folders.items():
        save_tiny_model(folder, **MODELS[name])
    ranks = run_gloo(tp, answers, folders, tp, timeout=400)
    for rank in ranks:
        for name, facts in rank.items():
            assert facts["same"] and facts["gap"] < 1e-4 and facts["greedy"], f"{name}: {facts}"
            assert facts["repeats"] and facts["sampled_gap"] < 1e-4 and facts["left_over"] == [], f"{name}: {facts}"
            assert facts["sampled"] == ranks[0][name]["sampled"], name
