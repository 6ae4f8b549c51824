"""The router of a mixture of experts, without Transformer Engine."""

import torch.nn.functional as F
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class Router(TopKRouter):
    """Megatron-core's; only the linear map to logits is our own, since its one needs Transformer Engine to be there."""

    def gating(self, input: Tensor) -> Tensor:
        """Hidden states ``[..., hidden]`` -> logits ``[..., expert]``, in their dtype as Hugging Face's models do."""
        return F.linear(input, self.weight)
