"""Saved rollouts made up for the lab's tests."""

import math
from pathlib import Path
from typing import Any

import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.serialization import save


def four_tokens() -> DataProto:
    """Rows of 2 tokens with A = 1 and A = -1; pi_old / pi_rollout is 1.1 and 1.5 in both, and NaN lies in the padding."""
    log_ratios = torch.tensor([[math.log(1.1), math.log(1.5), math.nan]] * 2)
    return DataProto(
        {
            "response_lengths": torch.tensor([2, 2]),
            "response_mask": torch.ones(2, 3, dtype=torch.bool),
            "rollout_log_probs": torch.full((2, 3), -2.0),
            "old_log_probs": -2.0 + log_ratios,
            "advantages": torch.tensor([1.0, -1.0]),
        }
    )


def save_batch(path: Path, batch: DataProto | None = None, **columns: Any) -> Path:
    """Writes a batch, by default the four tokens, with columns replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save((batch or four_tokens()).with_columns(**columns), path)
    return path
