"""What a run is trained on, as digests: a resume goes by contents, not by the names and places of files."""

import hashlib
import json
from pathlib import Path

import numpy as np

from trainer.data.prompts import PromptSet

EDGE_BYTES = 2**20
"""Of each end of a weight file, which are read; a whole model would take minutes."""


def fingerprint(model: Path, prompts: PromptSet) -> dict[str, str]:
    """Digests of the starting model and of the training prompts.

    Args:
        model: its folder.
        prompts: that training draws from, those over the length limit left out.

    Returns:
        ``model``: config.json, and of each weight file name, size and both ends; ``prompts``: how many; ``rows``: problem,
        ground truth and further columns of each, in order; ``tokens``: the token ids of each.
    """
    rows, tokens = hashlib.sha256(), hashlib.sha256()
    for record in prompts.records:
        row = [record.problem, record.ground_truth, record.extra]
        rows.update(json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
    for ids in prompts.tokens:
        tokens.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype="<i8").tobytes())
    return {
        "model": _model_digest(model),
        "prompts": str(len(prompts)),
        "rows": rows.hexdigest(),
        "tokens": tokens.hexdigest(),
    }


def _model_digest(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(EDGE_BYTES))
            content.seek(max(0, size - EDGE_BYTES))
            digest.update(content.read(EDGE_BYTES))
    return digest.hexdigest()
