"""Hints at runs that cannot learn: which metrics give rise to which, when, and that each is given once."""

import pytest

from trainer.config import Config, DataConfig
from trainer.run.dead_runs import STREAK, DeadRuns
from workers.config import RolloutConfig

LIVE = {
    "response_length/mean": 20.0,
    "response_length/truncated_share": 0.5,
    "reward/min": 0.0,
    "reward/max": 1.0,
    "reward/groups_without_signal": 0.5,
    "reward/unboxed": 3.0,
    "actor/grad_norm": 0.1,
}
ZERO = {"reward/max": 0.0, "reward/groups_without_signal": 1.0, "actor/grad_norm": 0.0}
BATCH = 64.0


def config(prompts: int = 16, system_prompt: str | None = None) -> Config:
    data = DataConfig(train_files=["x"], train_batch_size=prompts, max_response_length=99, system_prompt=system_prompt)
    return Config(data=data, rollout=RolloutConfig(group_size=4))


def steps_of(dead: DeadRuns, *changes: dict, times: int = 1) -> list[list[str]]:
    """The names of the hints after each step."""
    return [list(dead.look(LIVE | change)) for change in changes for _ in range(times)]


@pytest.mark.parametrize(
    ("change", "name", "first"),
    [
        ({"reward/unboxed": BATCH, **ZERO}, "unboxed", 1),
        ({"response_length/truncated_share": 1.0}, "length_limit", 1),
        ({"reward/no_opinion": BATCH}, "no_opinion", 1),
        ({"reward/timeouts": BATCH, **ZERO}, "timeouts", 1),
        ({"reward/clipped": BATCH, "reward/min": 1.0}, "clipped_rewards", STREAK),
        (ZERO, "equal_rewards", STREAK),
        ({"reward/min": 1.0}, "equal_rewards", STREAK),
        ({"actor/grad_norm": 0.0}, "no_gradient", STREAK),
        ({"actor/zero_gradient_share": 1.0}, "no_gradient", STREAK),
        ({"correction/rejected_share": 1.0, "actor/grad_norm": 0.0}, "left_out", STREAK),
    ],
)
def test_each_sign_is_told_once_and_alone(change: dict, name: str, first: int):
    told = steps_of(DeadRuns(config()), change, times=6)
    assert told == [[name] if step == first else [] for step in range(1, 7)]


def test_a_run_that_learns_is_told_nothing():
    almost = [{"reward/unboxed": BATCH - 1}, ZERO, ZERO, {}, ZERO, ZERO, {"response_length/truncated_share": 0.98}]
    assert steps_of(DeadRuns(config()), *almost) == [[]] * len(almost)


def test_few_responses_need_as_many_steps_as_the_rest():
    dead = DeadRuns(config(prompts=2))
    assert steps_of(dead, {"reward/unboxed": 8.0}, times=3) == [[], [], ["unboxed"]]


def test_responses_of_dropped_groups_are_counted():
    dead = DeadRuns(config())
    drawn = {"sampling/prompts_drawn": 32.0}
    assert steps_of(dead, {"reward/unboxed": BATCH, **drawn}, {"reward/unboxed": 2 * BATCH, **drawn}) == [
        [],
        ["unboxed"],
    ]


def test_a_resume_goes_on_with_the_streak_and_repeats_nothing():
    history = [{"step": 0}, {"step": 1, **LIVE, **ZERO}, {"step": 2, **LIVE, **ZERO}]
    assert steps_of(DeadRuns(config(), history), ZERO) == [["equal_rewards"]]
    assert steps_of(DeadRuns(config(), history, told=["equal_rewards"]), ZERO) == [[]]


def test_the_hints_say_what_to_do():
    unboxed = LIVE | {"reward/unboxed": BATCH}
    asks = r"data.system_prompt='Put your final answer within \boxed{}.'"
    assert asks in DeadRuns(config()).look(unboxed)["unboxed"]
    asked = DeadRuns(config(system_prompt=r"Use \boxed{}.")).look(unboxed)["unboxed"]
    assert "the system prompt asks for a box" in asked
    assert (
        "data.max_response_length=99"
        in DeadRuns(config()).look(LIVE | {"response_length/truncated_share": 1.0})["length_limit"]
    )
