"""pass@k: the chance that at least one of k responses is right."""

import torch
from torch import Tensor


def pass_at_k(correct: Tensor, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k), mean over problems (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        correct: ``[problem, sample]`` bool.
        k: at most the number of samples n.
    """
    samples = correct.shape[1]
    wrong = samples - correct.sum(dim=1, dtype=torch.float64)
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i); a factor at or below 0 makes it 0.
    drawn = torch.arange(k, dtype=torch.float64)
    none_right = ((wrong[:, None] - drawn).clamp(min=0) / (samples - drawn)).prod(dim=1)
    return (1 - none_right).mean().item()


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]
