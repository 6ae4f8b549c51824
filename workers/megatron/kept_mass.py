"""What top-p and top-k leave of the distribution: the probability of the kept tokens at each response position.

vLLM reports log-probs of the distribution that it samples from, renormalised over the kept tokens. With Z the mass of
these, log pi_rollout = log pi - log Z for a kept token: log Z is what the transform of sampling costs, and what stands
between those log-probs and the full softmax of the policy.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from workers.megatron.log_probs import Head, chunk_logits, chunks_of, vocabulary_log_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """Which tokens sampling keeps: the ``top_k`` likeliest (-1: all), and of these the fewest with the mass ``top_p``."""

    top_p: float
    top_k: int

    def with_kept_mass(self, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, ...]:
        """Log-probs and entropy as ``vocabulary_log_probs`` gives them, and the log of the kept mass."""
        return *vocabulary_log_probs(hidden, weight, targets, head), kept_log_mass(hidden, weight, head, self)


@torch.no_grad()
def kept_log_mass(hidden: Tensor, weight: Tensor, head: Head, truncation: Truncation) -> Tensor:
    """Log Z in nats, fp32 ``[token]``, the same on every tp rank; arguments as those of ``vocabulary_log_probs``.

    Logits of a chunk are gathered over tp and sorted, which costs about as much as a pass over them for log-probs.
    """
    log_mass = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
    for chunk in chunks_of(len(hidden), head):
        local = chunk_logits(hidden[chunk], weight[: head.num_tokens], head.temperature)
        log_mass[chunk] = _kept(_whole_vocabulary(local, len(weight), head.tp_group), truncation)
    return log_mass


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
