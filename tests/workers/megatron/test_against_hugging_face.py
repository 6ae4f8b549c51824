"""Log-probs and gradients equal those of transformers' own models on the same random weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo import run_gloo
from megatron.core import parallel_state
from policy_world import Case, build_policy, mini_batch, objective
from tiny_model import LLAMA_31, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from cfpo_hybrid.protocol import DataProto

MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 many heads": {"num_attention_heads": 8, "num_key_value_heads": 8, "seed": 3},
    "llama": {"family": "llama", "rms_norm_eps": 1e-5, "head_dim": 16},
    "llama 3": {"family": "llama", "rope_theta": 500000.0, "num_key_value_heads": 1},
    "llama 3.1": {"family": "llama", "rope_scaling": LLAMA_31},
    "qwen3": {"family": "qwen3"},
    "qwen3 one group": {"family": "qwen3", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3 moe": {"family": "qwen3_moe"},
    "qwen3 moe, probabilities as they are": {"family": "qwen3_moe", "norm_topk_prob": False},
    "mistral": {"family": "mistral", "sliding_window": 64},
}
TEMPERATURE = 0.7


def transformers_log_probs(model: PreTrainedModel, batch: DataProto) -> tuple[Tensor, Tensor]:
    """Padded log-probs and entropy, one unpadded sequence at a time."""
    log_probs, entropy = torch.zeros(batch["responses"].shape), torch.zeros(batch["responses"].shape)
    for row in range(len(batch)):
        prompt = batch["prompts"][row, : batch["prompt_lengths"][row]]
        response = batch["responses"][row, : batch["response_lengths"][row]]
        logits = model(torch.cat([prompt, response]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        distribution = F.log_softmax(logits.float() / TEMPERATURE, dim=-1)
        log_probs[row, : len(response)] = distribution.gather(1, response.unsqueeze(1)).squeeze(1)
        entropy[row, : len(response)] = -(distribution.exp() * distribution).sum(dim=-1)
    return log_probs, entropy


def megatron_answers(cases: dict[str, Case]) -> dict[str, tuple[Tensor, Tensor]]:
    answers = {}
    for name, case in cases.items():
        policy = build_policy(case, temperature=TEMPERATURE)
        answer = policy.log_probs(mini_batch(rows=9))
        answers[name] = (answer["old_log_probs"], answer["entropy"])
        parallel_state.destroy_model_parallel()
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_log_probs_and_entropy(world: int) -> None:
    cases = {name: Case(tp=world, sequence_parallel=True, micro_batch_tokens=40, model=m) for name, m in MODELS.items()}
    for answers in run_gloo(world, megatron_answers, cases, timeout=300):
        for name, (log_probs, entropy) in answers.items():
            with torch.no_grad():
                expected = transformers_log_probs(tiny_model(**MODELS[name]), mini_batch(rows=9))
            torch.testing.assert_close(log_probs, expected[0], rtol=1e-5, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")
            torch.testing.assert_close(entropy, expected[1], rtol=1e-5, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def gradient_of_a_step() -> tuple[float, float]:
    policy = build_policy(Case(micro_batch_tokens=30), temperature=TEMPERATURE)
    metrics = policy.update(mini_batch(), objective(kl_coef=0.0, entropy_coef=0.05))
    return metrics["actor/loss"], metrics["actor/grad_norm"]


@pytest.mark.slow
def test_loss_and_gradient_norm_of_an_update() -> None:
    """CFPO with an entropy bonus written out by hand on padded tensors and transformers' autograd."""
    (found,) = run_gloo(1, gradient_of_a_step)
    model, batch = tiny_model(), mini_batch()
    log_probs, entropy = transformers_log_probs(model, batch)
    mask = batch["response_mask"].float()
    ratio = (log_probs - batch["old_log_probs"]).exp()
    advantages = batch["advantages"].unsqueeze(1)
    surrogate = ratio * advantages - advantages.abs() / (2 * 0.2) * (ratio - 1) ** 2  # equation 7
    per_token = -surrogate - 0.05 * entropy
    per_sequence = (per_token * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    loss = per_sequence.mean()  # equation 8
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found[1] == pytest.approx(float(norm), rel=1e-4)
