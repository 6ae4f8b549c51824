"""The cosine between the gradients of two optimizer steps in a row: do they pull the same way?"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor


class GradientCosine:
    """Compares each gradient with the one before, of which it keeps a copy.

    The copy is fp32 and of the size of the gradients that this rank steps: 4 bytes a parameter, with the distributed
    optimizer divided by dp. Elements are those that Megatron-core counts in the gradient norm, each once over tp, pp, dp
    and ep, and sums run over the same ranks, so the cosine is that of whole gradients under any layout.

    Args:
        optimizer: whose gradients.
        device: where they are.
    """

    def __init__(self, optimizer: MegatronOptimizer, device: torch.device) -> None:
        chained: Any = optimizer
        self._parts: list[Any] = chained.chained_optimizers
        self._device = device
        self._norm: float | None = None
        self.kept: list[Tensor] = []

    def measure(self, norm: float) -> dict[str, float]:
        """``actor/grad_cosine``, and keeps the gradient; nothing at the first step of a process or beside a zero gradient.

        Collective over the world. Gradients must be final and not yet clipped.

        Args:
            norm: of the gradient over all ranks.
        """
        gradients = [part.get_main_grads_for_grad_norm() for part in self._parts]
        flat = [gradient.reshape(-1) for part in gradients for gradient in part]
        previous, self._norm = self._norm, norm
        if previous is None:
            self.kept = [gradient.to(torch.float32, copy=True) for gradient in flat]
            return {}
        product = self._product_with_kept(gradients)
        for kept, gradient in zip(self.kept, flat, strict=True):
            kept.copy_(gradient)
        return {"actor/grad_cosine": product / (previous * norm)} if previous * norm > 0 else {}

    def _product_with_kept(self, gradients: list[list[Tensor]]) -> float:
        """The dot product over all ranks; experts are reduced over ranks of their own."""
        kept, products = iter(self.kept), []
        for part, own in zip(self._parts, gradients, strict=True):
            product = torch.zeros((), dtype=torch.float64, device=self._device)
            for gradient in own:
                product += torch.dot(gradient.reshape(-1).float(), next(kept))
            dist.all_reduce(product, group=part.get_grad_stats_parallel_group())
            products.append(product)
        return float(torch.stack(products).sum())
