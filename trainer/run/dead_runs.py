"""Hints at runs that cannot learn: what shows in the metrics of a step, and what to do about it. They stop nothing."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import Config

LENGTH = "response_length/mean"
"""A line of ``metrics.jsonl`` that has it is that of a step."""
STREAK = 3
"""Steps in a row after which something is told: a single step may be bad luck with a few hard prompts, and three cost
little."""
ENOUGH = 32
"""Responses from which one step is enough where each response says the same of the settings, not of its problem."""

_TRUNCATED = "response_length/truncated_share"

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sign:
    """One way in which a run is dead.

    Args:
        name: under which it is told, once.
        shows: whether the metrics of a step have it, given how many responses were scored.
        text: what is told, given those metrics.
        at_once: one step of ``ENOUGH`` responses will do.
        includes: names of signs that follow from this one and need no line of their own.
    """

    name: str
    shows: Callable[[Line, float], bool]
    text: Callable[[Line], str]
    at_once: bool = False
    includes: tuple[str, ...] = ()


class DeadRuns:
    """Looks for signs that a run learns nothing, and tells each once.

    Args:
        config: of the run.
        history: the lines of ``metrics.jsonl`` so far; streaks go on from them.
        told: names of the hints that the run has told before.
    """

    def __init__(self, config: Config, history: Iterable[Line] = (), told: Iterable[str] = ()) -> None:
        self._group_size = config.rollout.group_size
        self._size = config.data.train_batch_size
        self._lines: deque[Line] = deque((line for line in history if LENGTH in line), maxlen=STREAK)
        self._told = set(told)
        self._signs = (*_signs_of_responses(config), *_SIGNS_OF_THE_UPDATE)

    def look(self, metrics: Line) -> dict[str, str]:
        """The hints that the metrics of a step give rise to, by name; none that was given before."""
        self._lines.append(metrics)
        found = {sign.name: sign for sign in self._signs if self._shows(sign)}
        explained = {name for sign in found.values() for name in sign.includes}
        hints = {name: sign.text(metrics) for name, sign in found.items() if name not in self._told | explained}
        self._told |= hints.keys()
        return hints

    def _shows(self, sign: Sign) -> bool:
        newest = self._lines[-1]
        needed = 1 if sign.at_once and self._scored(newest) >= ENOUGH else STREAK
        last = list(self._lines)[-needed:]
        return len(last) == needed and all(sign.shows(line, self._scored(line)) for line in last)

    def _scored(self, line: Line) -> float:
        """Responses that were scored in a step, those of dropped groups too."""
        return (line.get("sampling/prompts_drawn") or self._size) * self._group_size


def _signs_of_responses(config: Config) -> tuple[Sign, ...]:
    limit = config.data.max_response_length
    asks = "boxed" in (config.data.system_prompt or "")
    box = "the system prompt asks for a box; see in generations/ what the model writes instead"
    if not asks:
        box = r"ask for it, e.g. data.system_prompt='Put your final answer within \boxed{}.'"
    return (
        Sign(
            "unboxed",
            lambda line, scored: (line.get("reward/unboxed") or 0) >= scored,
            lambda line: (
                rf"no response has its answer in \boxed{{}}, so the math reward is 0 for each: {box}"
                + (
                    f". All of them are cut at data.max_response_length={limit}, too"
                    if _is(line, _TRUNCATED, 1)
                    else ""
                )
            ),
            at_once=True,
            includes=("equal_rewards", "no_gradient", "length_limit"),
        ),
        Sign(
            "length_limit",
            lambda line, _: _is(line, _TRUNCATED, 1),
            lambda _: (
                f"every response is cut at data.max_response_length={limit}: raise it, or see whether the model ends "
                "its responses at all (the end token in its generation_config.json, the chat template)"
            ),
            at_once=True,
        ),
        Sign(
            "no_opinion",
            lambda line, scored: (line.get("reward/no_opinion") or 0) >= scored,
            lambda _: "the reward has no opinion on any response, so none is trained on: see what it returns None for",
            at_once=True,
            includes=("equal_rewards", "no_gradient"),
        ),
        Sign(
            "timeouts",
            lambda line, scored: (line.get("reward/timeouts") or 0) >= scored,
            lambda _: (
                f"scoring took longer than reward.timeout_seconds={config.reward.timeout_seconds:g} for every "
                "response, so each scores 0: raise it"
            ),
            at_once=True,
            includes=("equal_rewards", "no_gradient"),
        ),
        Sign(
            "clipped_rewards",
            lambda line, scored: (line.get("reward/clipped") or 0) >= scored,
            lambda _: "every reward lies beyond reward.lowest or reward.highest: widen them",
            includes=("equal_rewards",),
        ),
    )


def _is(line: Line, metric: str, value: float) -> bool:
    return line.get(metric) is not None and line[metric] == value


def _equal_rewards(line: Line, scored: float) -> bool:
    lowest, highest = line.get("reward/min"), line.get("reward/max")
    return lowest is not None and lowest == highest


def _equal_rewards_text(line: Line) -> str:
    reward = line["reward/max"]
    advice = (
        "the problems are too hard, or the reward does not see the answers; read some in generations/"
        if reward <= 0
        else "the problems are too easy, or the reward does not tell responses apart; read some in generations/"
    )
    return (
        f"all responses of {STREAK} rollout steps earned the same, {reward:g}, so there is nothing to learn: {advice}"
    )


_SIGNS_OF_THE_UPDATE = (
    Sign("equal_rewards", _equal_rewards, _equal_rewards_text, includes=("no_gradient",)),
    Sign(
        "left_out",
        lambda line, _: any(_is(line, f"correction/{share}", 1) for share in ("masked_share", "rejected_share")),
        lambda _: (
            "algorithm.rollout_correction leaves out every token: its bounds are too narrow, or vLLM and Megatron "
            "disagree (mismatch/*)"
        ),
        includes=("no_gradient",),
    ),
    Sign(
        "no_gradient",
        lambda line, _: _is(line, "actor/grad_norm", 0) or _is(line, "actor/zero_gradient_share", 1),
        lambda line: (
            f"no token has a gradient, in {STREAK} rollout steps: the responses to each prompt earn the same "
            f"(reward/groups_without_signal is {line.get('reward/groups_without_signal', float('nan')):.0%}), or the loss "
            "clips or leaves out all of them"
        ),
    ),
)
