"""Gradients of several losses side by side: norms, and the cosine of each pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Of gradients in the order of their losses.

    Example: gradients (3, 4) and (4, 3) have the norms 5 and 5 and the cosine 24 / 25.
    """

    norms: Tensor
    """``[loss]`` fp64."""
    cosines: Tensor
    """``[loss, loss]`` fp64; NaN beside a gradient of 0."""

    @classmethod
    def of(cls, gradients: Sequence[Tensor]) -> "Comparison":
        """The comparison of vectors ``[number]`` of one length; one pair at a time is held in fp64."""
        size = len(gradients)
        products = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            own = gradients[row].double()
            for column in range(row + 1):
                products[row, column] = products[column, row] = torch.dot(own, gradients[column].double())
        norms = products.diagonal().sqrt()
        return cls(norms=norms, cosines=products / torch.outer(norms, norms))
