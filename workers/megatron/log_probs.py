"""Log-probs and entropy of response tokens straight from hidden states, over a vocabulary split across tp.

    logits_v = hidden . weight_v / temperature          for the real vocabulary only; padding rows never enter
    log_prob = logits_target - logsumexp(logits)
    entropy  = logsumexp(logits) - sum_v p_v logits_v    in nats

Logits exist for one chunk of tokens at a time, in fp32 whatever the model's dtype. The backward pass computes them
again, chunk by chunk. Ranks exchange four numbers a token, once a micro-batch.

Where sampling keeps a part of the vocabulary, vLLM reports log-probs of the distribution that it samples from, renormalised
over the kept tokens. With Z the mass of these, log pi_rollout = log pi - log Z for a kept token: log Z is what the
transform of sampling costs, and what stands between those log-probs and the full softmax of the policy.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What the language-model head is on this rank.

    Args:
        first_token: vocabulary id of the first row of this rank's weight.
        num_tokens: rows that stand for real tokens; later ones are padding.
        temperature: of the rollout; logits are divided by it before the softmax.
        chunk_tokens: tokens whose logits exist at one time.
        tp_group: ranks that hold the other parts of the vocabulary; None for one rank.
    """

    first_token: int
    num_tokens: int
    temperature: float
    chunk_tokens: int
    tp_group: dist.ProcessGroup | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """Which tokens sampling keeps: the ``top_k`` likeliest (-1: all), and of these the fewest with the mass ``top_p``."""

    top_p: float
    top_k: int


def vocabulary_log_probs(
    hidden: Float[Tensor, "token hidden"],
    weight: Float[Tensor, "vocab_shard hidden"],
    targets: Int[Tensor, " token"],
    head: Head,
) -> tuple[Float32[Tensor, " token"], Float32[Tensor, " token"]]:
    """Log-probs of ``targets`` and the entropy of their distributions, in nats and the same on every tp rank.

    The gradient towards ``hidden`` is this rank's share; the caller sums it over tp.

    Args:
        hidden: the same on every tp rank.
        weight: padding rows included.
        targets: vocabulary ids.
        head: what the weight stands for.
    """
    log_probs, entropy = _VocabularyLogProbs.apply(hidden, weight, targets, head)
    return log_probs, entropy


@torch.no_grad()
def kept_log_mass(
    hidden: Float[Tensor, "token hidden"],
    weight: Float[Tensor, "vocab_shard hidden"],
    head: Head,
    truncation: Truncation,
) -> Float32[Tensor, " token"]:
    """Log Z in nats, the same on every tp rank; arguments as those of :func:`vocabulary_log_probs`.

    Logits of a chunk are gathered over tp and sorted, which costs about as much as a pass over them for log-probs.
    """
    log_mass = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
    for chunk in _chunks(len(hidden), head):
        local = _logits(hidden[chunk], weight[: head.num_tokens], head.temperature)
        log_mass[chunk] = _kept(_whole_vocabulary(local, len(weight), head.tp_group), truncation)
    return log_mass


class _VocabularyLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        real = weight[: head.num_tokens]
        # Rows: maximum, sum of exp, sum of exp * logit, logit of the target; each of this rank's part.
        parts = torch.zeros(4, len(targets), dtype=torch.float32, device=hidden.device)
        parts[0] = float("-inf")
        local, here = _local_targets(targets, head)
        for chunk in _chunks(len(targets), head) if head.num_tokens else ():
            logits = _logits(hidden[chunk], real, head.temperature)
            parts[3, chunk] = torch.where(here[chunk], logits.gather(1, local[chunk].unsqueeze(1)).squeeze(1), 0.0)
            parts[0, chunk] = maximum = logits.amax(dim=1)
            exponentials = torch.exp(logits - maximum.unsqueeze(1))
            parts[1, chunk] = exponentials.sum(dim=1)
            parts[2, chunk] = torch.linalg.vecdot(exponentials, logits)
        total, logit_sum, target_logit, maximum = _combine(parts, head.tp_group)
        normaliser = maximum + total.log()
        entropy = normaliser - logit_sum / total
        ctx.save_for_backward(hidden, weight, local, here, normaliser, entropy)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return target_logit - normaliser, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, local, here, normaliser, entropy = ctx.saved_tensors
        head: Head = ctx.head
        grad_log_prob, grad_entropy = grads
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        real = weight[: head.num_tokens]
        for chunk in _chunks(len(local), head) if head.num_tokens else ():
            logits = _logits(hidden[chunk], real, head.temperature)
            logits -= normaliser[chunk].unsqueeze(1)  # log p over the vocabulary
            grad = torch.zeros_like(logits) if grad_log_prob is None else logits.exp().mul_(-grad_log_prob[chunk, None])
            if grad_log_prob is not None:
                share = torch.where(here[chunk], grad_log_prob[chunk], 0.0)
                grad.scatter_add_(1, local[chunk].unsqueeze(1), share.unsqueeze(1))
            if grad_entropy is not None:  # dH / dlogit_v = -p_v (log p_v + H)
                surprise = logits + entropy[chunk].unsqueeze(1)
                grad -= logits.exp_().mul_(surprise).mul_(grad_entropy[chunk, None])
            grad = grad.div_(head.temperature).to(weight.dtype)
            grad_hidden[chunk] = grad @ real
            _add_product(grad_weight[: head.num_tokens], grad, hidden[chunk])
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _chunks(num_tokens: int, head: Head) -> list[slice]:
    """The stretches of tokens whose logits exist at one time."""
    return [slice(start, start + head.chunk_tokens) for start in range(0, num_tokens, head.chunk_tokens)]


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """In fp32; products of bf16 operands are summed and kept in fp32, never rounded to bf16."""
    if hidden.dtype == torch.float32:
        logits = hidden @ weight.t()
    elif hidden.device.type == "cuda":
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().t()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Total += grad^T hidden in fp32."""
    if grad.dtype == torch.float32:
        total.addmm_(grad.t(), hidden)
    elif grad.device.type == "cuda":
        total += torch.mm(grad.t(), hidden, out_dtype=torch.float32)
    else:
        total.addmm_(grad.t().float(), hidden.float())


def _local_targets(targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """(row of each target in this rank's weight, whether it is there at all); rows elsewhere are given as 0."""
    local = targets - head.first_token
    here = (local >= 0) & (local < head.num_tokens)
    return torch.where(here, local, 0), here


def _combine(parts: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adds up the parts of all tp ranks: (sum of exp, sum of exp * logit, logit of the target, maximum)."""
    maximum = parts[0]
    if group is None:
        return parts[1], parts[2], parts[3], maximum
    largest = maximum.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    parts[1:3] *= torch.exp(maximum - largest)
    sums = parts[1:].clone()
    dist.all_reduce(sums, group=group)
    return sums[0], sums[1], sums[2], largest


def _kept(logits: Tensor, truncation: Truncation) -> Tensor:
    """In vLLM's order: top-k, then top-p of what that has left, the likeliest token in any case."""
    ordered = logits.sort(dim=1).values
    whole = ordered.logsumexp(dim=1)
    if 0 < truncation.top_k < ordered.shape[1]:
        smallest = ordered[:, -truncation.top_k].unsqueeze(1)
        ordered = ordered.masked_fill(ordered < smallest, float("-inf"))
    if truncation.top_p < 1:
        dropped = ordered.softmax(dim=1).cumsum(dim=1) <= 1 - truncation.top_p
        dropped[:, -1] = False
        ordered = ordered.masked_fill(dropped, float("-inf"))
    return ordered.logsumexp(dim=1) - whole


def _whole_vocabulary(logits: Tensor, rows: int, group: dist.ProcessGroup | None) -> Tensor:
    """The logits of all tp ranks side by side; padding rows are impossible tokens."""
    padded = torch.nn.functional.pad(logits, (0, rows - logits.shape[1]), value=float("-inf"))
    if group is None:
        return padded
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts, dim=1)
