"""The tokens that end a response: the end-of-sequence tokens of the model's and the generation config."""

import json
from pathlib import Path

from cfpo_hybrid.errors import ModelError


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """End-of-sequence token ids of a Hugging Face folder, from generation_config.json and config.json.

    Raises:
        ModelError: neither file names one, so that no response would ever end.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.exists():
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            found.update([] if value is None else [value] if isinstance(value, int) else value)
    if not found:
        raise ModelError(
            f"neither generation_config.json nor config.json in '{folder}' names an eos_token_id, so no response would "
            "ever end; add it to config.json"
        )
    return tuple(sorted(found))
