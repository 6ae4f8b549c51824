"""An engine without vLLM, which answers a prompt with itself: all that workers may ask of an engine, and nothing more."""

from collections.abc import Iterable

import torch
from torch import Tensor

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ShardSpec
from workers.rollout.engine import SamplingSettings


class EchoEngine:
    """A RolloutEngine that writes down the calls which change it."""

    dtype = torch.float32

    def __init__(self, specs: list[ShardSpec]) -> None:
        self.calls: list[str] = []
        self._specs = specs
        self._parameters = {spec.name: torch.full(spec.shape, torch.nan) for spec in specs}

    def generate(self, batch: DataProto, sampling: SamplingSettings, response_width: int) -> DataProto:
        lengths = batch["prompt_lengths"].clamp(max=sampling.max_tokens)
        mask = torch.arange(response_width) < lengths.unsqueeze(1)
        prompts = torch.nn.functional.pad(batch["prompts"], (0, response_width))[:, :response_width]
        return DataProto(
            {
                "responses": prompts * mask,
                "response_lengths": lengths,
                "response_mask": mask,
                "rollout_log_probs": -mask.float(),
                "truncated": batch["prompt_lengths"] > sampling.max_tokens,
            }
        )

    def score(self, sequences: list[list[int]]) -> list[Tensor]:
        return [torch.full((len(tokens) - 1,), -1.0) for tokens in sequences]

    def parameters(self) -> dict[str, Tensor]:
        return self._parameters

    def specs(self) -> list[ShardSpec]:
        return self._specs

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in tensors:
            self._parameters[name].copy_(tensor)

    def finish_update(self) -> None:
        self.calls.append("finish_update")

    def sleep(self) -> None:
        self.calls.append("sleep")

    def sleep_kv_cache(self) -> None:
        self.calls.append("sleep_kv_cache")

    def wake_weights(self) -> None:
        self.calls.append("wake_weights")

    def wake_kv_cache(self) -> None:
        self.calls.append("wake_kv_cache")

    def close(self) -> None:
        self.calls.append("close")
