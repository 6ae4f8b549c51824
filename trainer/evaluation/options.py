"""What ``cfpo eval`` is told: a model, and the settings of an evaluation, which begin as those of the model's run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ModelError
from trainer.config import Config
from trainer.config.merge import Draft
from trainer.config.model import find_model
from trainer.config.problem import Problem
from trainer.config.schema import flat
from trainer.config.sources import Source, read_overrides, read_recipe
from trainer.rules import check_evaluation, merge_config
from trainer.run.checkpoint import saved_model
from trainer.run.directory import RunDirectory
from trainer.run.model_card import RECIPE
from trainer.run.validation_names import SET_NAME
from workers.tokenizer import CHAT_TEMPLATE

MAX_PROMPT_LENGTH, MAX_RESPONSE_LENGTH = 512, 3072
"""Lengths of the CFPO paper (table 3), for models of no run that have positions enough."""

OF_NO_RUN = {"trainer.val_temperature": 0.6, "trainer.val_top_p": 0.95}
"""Sampling of the CFPO paper, section 4.1, "Evaluation", for models of no run."""

PROBLEMS = ("data.val_files", "data.val_sets", "data.val_limit")
"""Which problems a run validates on; taken up unless others are named."""

INHERITED = (
    *PROBLEMS,
    "data.problem_key",
    "data.answer_key",
    "data.solution_key",
    "data.none_values",
    "data.source_key",
    "data.system_prompt",
    "data.examples",
    "data.chat_template",
    "data.chat_template_kwargs",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.overlong",
    "reward",
    "rollout.stop",
    "rollout.dtype",
    "rollout.tensor_parallel_size",
    "rollout.kv_cache_bytes",
    "rollout.max_num_seqs",
    "rollout.max_num_batched_tokens",
    "rollout.enable_prefix_caching",
    "rollout.enforce_eager",
    "trainer.val_temperature",
    "trainer.val_top_p",
    "trainer.val_samples",
    "trainer.seed",
)
"""Settings of a run, or sections of it, that its validation figures depend on."""

SETTABLE = (
    *INHERITED,
    "data.val_batch_size",
    "model.revision",
    "model.trust_remote_code",
    "rollout.gpu_memory_utilization",
    "trainer.num_workers",
    "trainer.cpus_per_worker",
    "trainer.device",
    "trainer.ray_address",
    "trainer.cluster_wait_seconds",
)
"""Settings that an evaluation has a use for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSettings:
    """A checked evaluation.

    Args:
        model: as the user names it.
        config: what is loaded is its ``model``, what is answered are its validation sets.
        recipe: file of the run whose settings are taken up; None where the model is of no run.
    """

    model: str
    config: Config
    recipe: Path | None


def load_evaluation(
    model: str, words: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> EvaluationSettings:
    """The settings of an evaluation: those of the model's run, and over them what the user says.

    Args:
        model: a Hugging Face id or folder, an export, a checkpoint folder, or a run directory: its last state.
        words: files of problems, or sets of them as ``NAME=FILE``, and ``key=value`` settings.
        settings: further ones by dotted key, which come before those of ``words``.

    Raises:
        ConfigError: every mistake at once.
        ModelError: a run directory without a model.
    """
    path = saved_model(model)
    recipe = recipe_of(model, path)
    files = [word for word in words if not _is_setting(word)]
    sources, bad_words = read_overrides([word for word in words if _is_setting(word)])
    sources = [Source(tree={key: value}, name="command line") for key, value in (settings or {}).items()] + sources
    sets, bad_files = _sets_of(files)
    own_problems = bool(files) or any(_is_one_of(key, PROBLEMS[:2]) for source in sources for key in source.tree)
    begin = {"model.path": path, "data.train_files": [], "rollout.gpu_memory_utilization": 0.9}
    draft = merge_config(
        [
            Source(tree=begin | ({} if recipe else OF_NO_RUN), name="cfpo eval"),
            *([_of_run(recipe, path, own_problems)] if recipe else []),
            *([Source(tree=sets, name="command line")] if files else []),
            *sources,
        ]
    )
    draft.problems += [Problem((), word) for word in [*bad_words, *bad_files]]
    draft.problems += [
        Problem((key,), f"{key} has no effect on an evaluation; settings that have: {', '.join(SETTABLE)}")
        for source in sources
        for key in map(str, source.tree)
        if key in draft.origins and key not in draft.doubtful and not _is_one_of(key, SETTABLE)
    ]
    if not draft.value.data.validation_sets and draft.doubtful.isdisjoint(PROBLEMS):
        whose = f"the run of {model} validates on none" if recipe else f"{model} is of no run that has some"
        draft.problems.append(Problem(PROBLEMS[:1], f"there are no problems to answer: name a FILE; {whose}"))
    _fill_in(draft)
    return EvaluationSettings(model=model, config=check_evaluation(draft).config, recipe=recipe)


def recipe_of(model: str, path: str) -> Path | None:
    """The settings of the run that a model comes from; None where it comes from none.

    Args:
        model: as the user names it.
        path: the model itself. An export or checkpoint keeps the recipe that its weights were trained by.
    """
    kept = Path(path) / RECIPE
    if kept.is_file():
        return kept
    for folder in (Path(model), *Path(model).absolute().parents[:3]):  # of a run whose exports keep none
        run = RunDirectory(folder)
        if run.config_file.is_file() and run.metrics_file.is_file():
            return run.config_file
    return None


def _is_setting(word: str) -> bool:
    """Whether a word is ``section.key=value``: names of sets have no dots."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "." in key and key.split(".")[0] in vars(Config())


def _is_one_of(key: str, known: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in known)


def _sets_of(files: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The setting that the files are, and what is wrong with them."""
    sets: dict[str, list[str]] = {}
    for word in files:
        name, equals, file = word.partition("=")
        named = equals and SET_NAME.fullmatch(name) is not None and not Path(word).exists()
        sets.setdefault(name if named else "", []).append(file if named else word)
    unnamed = sets.pop("", [])
    if unnamed and sets:
        return {}, [f"'{unnamed[0]}' has no set, but other files have one: write NAME=FILE for all files or for none"]
    return ({"data.val_sets": sets} if sets else {"data.val_files": unnamed}), []


def _of_run(recipe: Path, path: str, own_problems: bool) -> Source:
    """What an evaluation takes up of a run's settings."""
    source = read_recipe(recipe)
    settings = flat(source.tree)
    kept = {key: value for key, value in settings.items() if _is_one_of(key, INHERITED)}
    if own_problems:
        kept = {key: value for key, value in kept.items() if not _is_one_of(key, PROBLEMS)}
    texts = dict(source.texts)
    if kept.get("rollout.dtype") == "auto":  # as the actor's, of which an evaluation has none
        kept["rollout.dtype"] = texts["rollout.dtype"] = settings.get("actor.dtype", "auto")
    if (Path(path) / CHAT_TEMPLATE).is_file():
        kept.pop("data.chat_template", None)  # it is the one that the run used, and the file may be elsewhere by now
    return replace(source, tree=kept, texts=texts)


def _fill_in(draft: Draft[Config]) -> None:
    """What nobody has set: lengths that the model has room for, and a worker for each rank of a replica."""
    config, given = draft.value, draft.origins
    if "trainer.num_workers" not in given:
        workers = max(1, config.rollout.tensor_parallel_size)
        config = replace(config, trainer=replace(config.trainer, num_workers=workers))
    data = config.data
    prompt = data.max_prompt_length if "data.max_prompt_length" in given else None
    response = data.max_response_length if "data.max_response_length" in given else None
    try:
        positions = find_model(config.model).shape.max_position_embeddings
    except ModelError:  # said by the rules
        positions = MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH
    prompt, response = fitting_lengths(prompt, response, positions)
    draft.value = replace(config, data=replace(data, max_prompt_length=prompt, max_response_length=response))


def fitting_lengths(prompt: int | None, response: int | None, positions: int) -> tuple[int, int]:
    """Longest prompt and response, in tokens: what is asked for, or else as much as there are positions for.

    Example: with 512 positions and nothing asked for, 128 and 384.
    """
    room = positions - (response or 1)
    prompt = prompt or max(1, min(MAX_PROMPT_LENGTH, positions // 4, room))
    return prompt, response or max(1, min(MAX_RESPONSE_LENGTH, positions - prompt))
