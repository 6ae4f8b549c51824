"""What the page of a study says of its runs: model, data, rate, batch, lengths, versions, date and command."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.study.study import Study, short_name

Settings = Mapping[str, Any]
_MOST_NAMED = 6
"""Different values of a setting that are named; further ones are counted."""


def facts_of(study: Study) -> list[str]:
    """A line each; what no run has said yet is left out, and what differs between runs is said with all its values."""
    varied = [f"{short_name(key)} {', '.join(map(str, values))}" for key, values in study.axes.items()]
    settings = [run.settings for run in study.runs if run.settings]
    said = ((name, _values(map(words, settings))) for name, words in _SETTINGS.items())
    return [
        f"recipe: {study.recipe or 'not said'}",
        f"mode: {study.mode}",
        f"varied: {'; '.join(varied) or 'nothing'}",
        f"seeds of each cell: {', '.join(map(str, study.seeds))}",
        f"runs: {sum(run.finished for run in study.runs)} of {len(study.runs)} finished",
        *(f"{name}: {values}" for name, values in said if values),
        *_of_starts([start for run in study.runs for start in run.starts]),
    ]


def _of_starts(starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    dates = sorted({str(start["date"]) for start in starts if start.get("date")})
    versions: dict[str, dict[str, None]] = {}
    for start in starts:
        for package, version in (start.get("versions") or {}).items():
            versions.setdefault(package, {})[str(version)] = None
    if versions:
        yield "versions: " + ", ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    if dates:
        yield f"begun: {dates[0]}" + (f", the last start {dates[-1]}" if len(dates) > 1 else "")
    commands = _values(str(start.get("command") or "") for start in starts)
    if commands:
        yield f"command: {commands}"


def _values(words: Iterable[str]) -> str:
    different = list(dict.fromkeys(filter(None, words)))
    further = f" and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
    return " | ".join(different[:_MOST_NAMED]) + further


def _files(settings: Settings, key: str) -> str:
    found = settings.get(key)
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found or "")


def _data(settings: Settings) -> str:
    trained = _files(settings, "data.train_files")
    sets = [f"{key.removeprefix('data.val_sets.')}={_files(settings, key)}" for key in settings if "val_sets." in key]
    validated = ", ".join(filter(None, [_files(settings, "data.val_files"), *sets]))
    return trained + (f"; validation {validated}" if validated else "") if trained else ""


def _rate(settings: Settings) -> str:
    if "actor.lr" not in settings:
        return ""
    schedule = settings.get("actor.optimizer.schedule")
    warmup = settings.get("actor.optimizer.warmup_ratio")
    return (
        f"{settings['actor.lr']:g}"
        + (f", {schedule}" if schedule else "")
        + (f", warm-up over {warmup:.0%} of the optimizer steps" if warmup else "")
    )


def _batch(settings: Settings) -> str:
    prompts, group = settings.get("data.train_batch_size"), settings.get("rollout.group_size")
    if prompts is None or group is None:
        return ""
    passes, ratio = settings.get("algorithm.iterations"), settings.get("algorithm.batch_ratio")
    return f"{prompts} prompts x {group} responses a rollout step, iterations {passes} x batch ratio {ratio}"


def _length(settings: Settings) -> str:
    steps = settings.get("trainer.total_steps")
    limits = [settings.get(f"data.max_{part}_length") for part in ("prompt", "response")]
    tokens = "" if None in limits else f", at most {limits[0]} + {limits[1]} tokens of prompt + response"
    return f"{steps} rollout steps{tokens}" if steps else ""


def _advantage(settings: Settings) -> str:
    name = settings.get("algorithm.advantage")
    return f"{name}, aggregation {settings.get('algorithm.loss_aggregation')}" if name else ""


_SETTINGS: dict[str, Callable[[Settings], str]] = {
    "model": lambda settings: str(settings.get("model.path") or ""),
    "data": _data,
    "learning rate": _rate,
    "batch": _batch,
    "length": _length,
    "advantage": _advantage,
}
