"""Chunked vocabulary-parallel log-probs and entropy against log_softmax in double precision."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import run_gloo
from torch import Tensor

from workers.megatron.log_probs import Head, Truncation, kept_log_mass, vocabulary_log_probs

VOCAB, PADDED, HIDDEN, TOKENS, TEMPERATURE = 11, 16, 6, 7, 0.5


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, padded weight, targets, and the gradients that come in."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    weight[VOCAB:] = 1e4  # padding rows would win every softmax
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    grads = torch.randn(2, TOKENS, generator=generator)
    return hidden, weight, targets, grads[0], grads[1]


def expected() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, targets, grad_log_prob, grad_entropy = operands()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    distribution = F.log_softmax(hidden @ weight[:VOCAB].t() / TEMPERATURE, dim=-1)
    log_probs = distribution.gather(1, targets.unsqueeze(1)).squeeze(1)
    entropy = -(distribution.exp() * distribution).sum(dim=-1)
    (log_probs @ grad_log_prob.double() + entropy @ grad_entropy.double()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return log_probs.detach(), entropy.detach(), hidden.grad, weight.grad


def head(rank: int = 0, ranks: int = 1, chunk: int = 3) -> Head:
    rows = PADDED // ranks
    return Head(
        first_token=rank * rows,
        num_tokens=min(max(VOCAB - rank * rows, 0), rows),
        temperature=TEMPERATURE,
        chunk_tokens=chunk,
        tp_group=dist.group.WORLD if ranks > 1 else None,
    )


def computed(place: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, targets, grad_log_prob, grad_entropy = operands()
    rows = PADDED if place.tp_group is None else PADDED // dist.get_world_size()
    hidden = hidden.requires_grad_()
    weight = weight[place.first_token : place.first_token + rows].clone().requires_grad_()
    log_probs, entropy = vocabulary_log_probs(hidden, weight, targets, place)
    (log_probs @ grad_log_prob + entropy @ grad_entropy).backward()
    assert hidden.grad is not None and weight.grad is not None
    return log_probs.detach(), entropy.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_values_and_gradients(chunk: int) -> None:
    for found, wanted in zip(computed(head(chunk=chunk)), expected(), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_padding_rows_get_a_gradient_of_exactly_zero() -> None:
    assert computed(head())[3][VOCAB:].count_nonzero() == 0


def test_log_prob_alone_needs_no_entropy_gradient() -> None:
    hidden, weight, targets, grad, _ = operands()
    hidden = hidden.requires_grad_()
    log_probs, _ = vocabulary_log_probs(hidden, weight, targets, head())
    (log_probs @ grad).backward()
    found = hidden.grad
    reference = operands()[0].requires_grad_()
    distribution = F.log_softmax(reference @ weight[:VOCAB].t() / TEMPERATURE, dim=-1)
    (distribution.gather(1, targets.unsqueeze(1)).squeeze(1) @ grad).backward()
    torch.testing.assert_close(found, reference.grad, rtol=1e-5, atol=1e-5)


def test_no_tokens() -> None:
    hidden, weight = torch.zeros(0, HIDDEN, requires_grad=True), torch.ones(PADDED, HIDDEN, requires_grad=True)
    log_probs, entropy = vocabulary_log_probs(hidden, weight, torch.zeros(0, dtype=torch.int64), head())
    (log_probs.sum() + entropy.sum()).backward()
    assert weight.grad is not None and weight.grad.count_nonzero() == 0


def test_bf16_operands_keep_fp32_logits() -> None:
    """Rounding logits to bf16 would cost up to 2^-9 of their size; products of bf16 numbers are exact in fp32."""
    hidden, weight, targets, _, _ = operands()
    low_hidden, low_weight = hidden.bfloat16(), weight.bfloat16()
    found, _ = vocabulary_log_probs(low_hidden, low_weight, targets, head())
    exact, _ = vocabulary_log_probs(low_hidden.float(), low_weight.float(), targets, head())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


TRUNCATIONS = [Truncation(top_p=0.6, top_k=-1), Truncation(top_p=1.0, top_k=3), Truncation(top_p=0.7, top_k=4)]


def kept_masses(place: Head) -> list[Tensor]:
    hidden, weight, _, _, _ = operands()
    rows = PADDED if place.tp_group is None else PADDED // dist.get_world_size()
    weight = weight[place.first_token : place.first_token + rows]
    return [kept_log_mass(hidden, weight, place, truncation) for truncation in TRUNCATIONS]


def expected_kept_mass(truncation: Truncation) -> Tensor:
    """Token by token: the likeliest ``top_k``, and of these the fewest that hold ``top_p`` of what they hold together."""
    hidden, weight, _, _, _ = operands()
    masses = []
    for probabilities in F.softmax(hidden.double() @ weight[:VOCAB].double().t() / TEMPERATURE, dim=-1).tolist():
        likeliest = sorted(probabilities, reverse=True)[: truncation.top_k if truncation.top_k > 0 else VOCAB]
        kept: list[float] = []
        while sum(kept) < truncation.top_p * sum(likeliest) and len(kept) < len(likeliest):
            kept.append(likeliest[len(kept)])
        masses.append(sum(kept))
    return torch.tensor(masses, dtype=torch.float64)


def test_mass_that_truncated_sampling_keeps() -> None:
    for truncation, found in zip(TRUNCATIONS, kept_masses(head()), strict=True):
        wanted = expected_kept_mass(truncation)
        torch.testing.assert_close(found.double().exp(), wanted, rtol=1e-5, atol=1e-6)
        assert wanted.max() > wanted.min()


def computed_on_rank() -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Tensor]]:
    place = head(dist.get_rank(), dist.get_world_size())
    return computed(place), kept_masses(place)


def test_vocabulary_split_over_ranks() -> None:
    """With four ranks of four rows the last holds padding only."""
    answers = run_gloo(4, computed_on_rank)
    for found in (masses for _, masses in answers):
        torch.testing.assert_close(found, kept_masses(head()), rtol=1e-5, atol=1e-6)
    by_rank = [values for values, _ in answers]
    log_probs, entropy, grad_hidden, grad_weight = expected()
    for rank in range(4):
        torch.testing.assert_close(by_rank[rank][0].double(), log_probs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_rank[rank][1].double(), entropy, rtol=1e-5, atol=1e-5)
    # Each rank has its share of the hidden states' gradient.
    torch.testing.assert_close(sum(answer[2] for answer in by_rank).double(), grad_hidden, rtol=1e-5, atol=1e-5)
    found = torch.cat([answer[3] for answer in by_rank]).double()
    torch.testing.assert_close(found, grad_weight, rtol=1e-5, atol=1e-5)
