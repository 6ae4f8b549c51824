"""Finds, loads and checks a rollout that a run saved: ``RUN/rollouts/`` or ``RUN/offending/step_000010.batch``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss import PolicyLossInputs, token_advantages
from cfpo_hybrid.errors import BatchError, ConfigError, DataError
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.serialization import load
from trainer.run.directory import RunDirectory

FOLDERS = ("rollouts", "offending")
"""Of a run directory; the second holds batches that a collapse watch stopped at."""
SUFFIX = ".batch"
REQUIRED = ("old_log_probs", "advantages", "response_mask", "response_lengths")


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRollout:
    """A rollout that losses can be compared on.

    Args:
        path: of its file.
        batch: the rows whose numbers are all finite.
        rows_left_out: the others.
        settings: of the run that saved it, nested as in a recipe; empty when the file lies elsewhere.
    """

    path: Path
    batch: DataProto
    rows_left_out: int
    settings: Mapping[str, Any]

    def column(self, name: str) -> Tensor | None:
        """A column in fp64, None where the batch lacks it."""
        return self.batch[name].double() if name in self.batch else None

    def inputs(self, log_probs: Tensor, old_log_probs: Tensor, entropy: Tensor | None) -> PolicyLossInputs:
        """What a loss sees of it under two policies: fp64, the first policy's numbers with gradient.

        Args:
            log_probs: of the policy in training, log pi_theta, ``[batch, response]``.
            old_log_probs: of the one that sampled, log pi_old, likewise.
            entropy: of the policy in training in nats, where it is known, likewise.
        """
        return PolicyLossInputs(
            log_probs=log_probs.double().requires_grad_(),
            old_log_probs=old_log_probs.double(),
            advantages=self.batch["advantages"].double(),
            mask=_counted_tokens(self.batch),
            rollout_log_probs=self.column("rollout_log_probs"),
            ref_log_probs=self.column("ref_log_probs"),
            entropy=None if entropy is None else entropy.double().requires_grad_(),
        )

    @property
    def aggregation(self) -> str:
        """``algorithm.loss_aggregation`` of the run."""
        return str(self.setting("algorithm", "loss_aggregation", "seq_mean_token_mean"))

    def setting(self, section: str, key: str, default: Any) -> Any:
        """A setting of the run, or the default."""
        return self.settings.get(section, {}).get(key, default)


def load_rollout(source: Path, columns: Sequence[str] = ()) -> SavedRollout:
    """Reads a saved rollout.

    Args:
        source: a batch file, or a run directory: its newest batch, at the same step the offending one.
        columns: that are needed beside those that every loss reads.

    Raises:
        ConfigError: there is no such file, or no batch in the run directory.
        DataError: the file holds no batch, one that lacks columns, or one on which no loss has a gradient.
    """
    path = _find(source)
    try:
        batch = load(path)
    except BatchError as error:
        raise DataError(f"{path} holds no saved rollout: {error}") from error
    lacking = [name for name in (*REQUIRED, *columns) if name not in batch]
    if lacking:
        raise DataError(
            f"{path} lacks {', '.join(lacking)}; it has {', '.join(batch.column_names)}. Take a batch that a run saved "
            "after it had computed advantages"
        )
    finite = _finite_rows(batch)
    kept = batch if bool(finite.all()) else batch.rows(finite.numpy())
    counted = _counted_tokens(kept)
    if not bool(counted.any()):
        raise DataError(f"{path}: none of its {len(batch)} rows has a token that counts and finite numbers only")
    if not bool((counted & (token_advantages(kept["advantages"], counted.shape) != 0)).any()):
        raise DataError(
            f"{path}: every advantage is 0 (no group with different rewards), so no loss has a gradient; take another batch"
        )
    return SavedRollout(path=path, batch=kept, rows_left_out=len(batch) - len(kept), settings=_settings(path))


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise ConfigError(f"there is no batch or run directory '{source}'; name a *{SUFFIX} file or a run directory")
    found = [path for folder in FOLDERS for path in sorted((source / folder).glob(f"*{SUFFIX}"))]
    if not found:
        raise ConfigError(
            f"'{source}' has no saved rollout: there is no *{SUFFIX} file in {' or '.join(FOLDERS)}/; "
            "name a run that saved one"
        )
    return max(found, key=lambda path: (path.stem, FOLDERS.index(path.parent.name)))


def _counted_tokens(batch: DataProto) -> Tensor:
    """Response tokens that count, ``[batch, response]`` bool."""
    mask = batch["response_mask"]
    return mask & (torch.arange(mask.shape[1]) < batch["response_lengths"].unsqueeze(1))


def _finite_rows(batch: DataProto) -> Tensor:
    """Rows whose advantage and counted log-probs are finite, ``[batch]`` bool."""
    counted = _counted_tokens(batch)
    finite = batch["advantages"].isfinite()
    for name in ("old_log_probs", "rollout_log_probs", "ref_log_probs"):
        if name in batch:
            finite = finite & (batch[name].isfinite() | ~counted).all(dim=1)
    return finite


def _settings(path: Path) -> Mapping[str, Any]:
    return RunDirectory(path.parent.parent).config() if path.parent.name in FOLDERS else {}
