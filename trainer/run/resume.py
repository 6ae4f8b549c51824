"""What may differ between a checkpoint and the run that goes on from it.

refused    what makes the place in the data mean something else, or the model another one: ``FIXED`` and ``check_inputs``
said       everything else that changes results, in the line that tells where the run goes on: ``resume_line``
free       ``SAME_RUN``, and paths to the same contents

docs/run_directory.md has the table for users.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cfpo_hybrid.errors import ConfigError
from trainer.config.paths import really_changed
from trainer.run.checkpoint import TrainerState, package_versions
from trainer.run.directory import SAME_RUN

logger = logging.getLogger(__name__)

NAMED_SETTINGS = 8
"""Changed settings that a resume names; further ones are counted."""

Settings = Mapping[str, Any]
"""Resolved settings, nested and plain."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Settings that a resume cannot change.

    Args:
        keys: of them.
        why: what comes from them.
        where: whether that is so in a run with these settings.
    """

    keys: tuple[str, ...]
    why: str
    where: Callable[[Settings], bool] = lambda settings: True


def _curriculum(settings: Settings) -> str:
    return settings.get("data", {}).get("curriculum", "none")


FIXED = (
    Fixed(("trainer.seed",), "the order of prompts and the seeds of sampling come from it"),
    Fixed(("data.shuffle", "data.curriculum"), "the order of prompts comes from it"),
    Fixed(
        ("data.level_key",),
        "the levels of the curriculum come from it",
        lambda settings: _curriculum(settings) != "none",
    ),
    Fixed(
        ("data.curriculum_steps", "data.train_batch_size"),
        "the stages of data.curriculum=widen come from it",
        lambda settings: _curriculum(settings) == "widen",
    ),
)
"""What is refused by its name."""

BY_CONTENTS = ("model.path", "model.revision", "data.train_files")
"""What is refused by what it leads to: a model or a file may be at another place. A checkpoint that keeps no fingerprint of
its inputs goes by the names."""

ADVICE = "set it back, or start a new run in another trainer.run_dir"


def check_resumable(state: TrainerState, *, layout: Mapping[str, int], config: Settings) -> None:
    """Checks that this run can go on from a checkpoint; another layout and other versions are only logged.

    Args:
        state: of the checkpoint.
        layout: of this run.
        config: resolved settings of this run, nested and plain.

    Raises:
        ConfigError: other fixed settings, all of them at once.
    """
    changed = really_changed(state.config, config)
    reasons = {key: fixed.why for fixed in FIXED if fixed.where(config) for key in fixed.keys}
    if not state.inputs:
        reasons |= dict.fromkeys(BY_CONTENTS, "the checkpoint keeps no fingerprint of what it leads to")
    problems = [
        f"{key} is {now!r}, but the checkpoint of step {state.step} was trained with {was!r}: {reasons[key]}; {ADVICE}"
        for key, (was, now) in changed.items()
        if key in reasons
    ]
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


def check_inputs(state: TrainerState, inputs: Mapping[str, str], config: Settings) -> None:
    """Checks that a run starts from the model and draws from the prompts of its checkpoint.

    Args:
        state: of the checkpoint.
        inputs: ``trainer.data.fingerprint`` of this run; of a checkpoint without one nothing is checked.
        config: resolved settings of this run.

    Raises:
        ConfigError: another model, or other prompts.
    """
    saved = state.inputs
    problems = []
    if saved and saved["model"] != inputs["model"]:
        problems.append(
            f"model.path={config['model']['path']} is not the model that the checkpoint of step {state.step} was trained "
            f"from: its config.json or its weights are others; {ADVICE}"
        )
    if saved and saved["rows"] != inputs["rows"]:
        changed = [key for key in really_changed(state.config, config) if key.startswith("data.")]
        suspects = " or ".join(filter(None, [", ".join(changed), "the contents of the files"]))
        problems.append(
            f"data.train_files give {inputs['prompts']} prompts that are not the {saved['prompts']} which the checkpoint of "
            f"step {state.step} draws from, so its place in the data means nothing. Changed: {suspects}; {ADVICE}"
        )
    if problems:
        raise ConfigError(problems)


def resume_line(state: TrainerState, config: Settings, inputs: Mapping[str, str] | None = None) -> str:
    """Where a run goes on, and with which other settings than its checkpoint was trained with.

    Args:
        state: of the checkpoint.
        config: resolved settings of the run.
        inputs: its fingerprint.
    """
    return "".join(
        [f"goes on after step {state.step}, where its checkpoint was saved", *_news(state, config, inputs or {})]
    )


def _news(state: TrainerState, config: Settings, inputs: Mapping[str, str]) -> Iterator[str]:
    changed = really_changed(state.config, config)
    named = [f"{key}={now!r} (was {was!r})" for key, (was, now) in changed.items() if key not in SAME_RUN]
    if named:
        further = f" and {len(named) - NAMED_SETTINGS} more" if len(named) > NAMED_SETTINGS else ""
        yield f", from now on with {', '.join(named[:NAMED_SETTINGS])}{further}"
    if state.inputs and inputs and state.inputs["tokens"] != inputs["tokens"]:
        yield "; the same problems become other tokens than before (chat template, system prompt or tokenizer)"
    was, now = changed.get("trainer.total_steps", (None, None))
    optimizer = config["actor"]["optimizer"]
    if was is not None and (optimizer["schedule"] != "constant" or optimizer["warmup_ratio"] > 0):
        yield (
            f"; the learning rate follows the schedule of {now} steps from here on, not that of {was}: it may jump at the "
            f"first update"
        )
    if state.step == config["trainer"]["total_steps"]:
        yield "; no step is left, trainer.total_steps asks for as many"


def _words(layout: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in layout.items())
