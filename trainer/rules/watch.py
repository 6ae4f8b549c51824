"""Rules about the collapse watch: actions that exist, and limits that can be crossed at all."""

from collections.abc import Iterator

from trainer.config.problem import Problem, one_of
from trainer.config.schema import Config
from workers.watch_config import PASS_ACTIONS, STEP_ACTIONS


def actions(config: Config) -> Iterator[Problem]:
    """Each limit has one of its own actions."""
    watch = config.watch
    yield from one_of("watch.kl_action", watch.kl_action, PASS_ACTIONS)
    yield from one_of("watch.ess_action", watch.ess_action, PASS_ACTIONS)
    yield from one_of("watch.non_finite_action", watch.non_finite_action, PASS_ACTIONS)
    yield from one_of("watch.entropy_slope_action", watch.entropy_slope_action, STEP_ACTIONS)
    yield from one_of("watch.length_drift_action", watch.length_drift_action, STEP_ACTIONS)
    yield from one_of("watch.zero_reward_streak_action", watch.zero_reward_streak_action, STEP_ACTIONS)


def passes_to_stop(config: Config) -> Iterator[Problem]:
    """Passes can be stopped where there is more than one optimizer step."""
    watch = config.watch
    if config.algorithm.updates_per_step != 1:
        return
    for name, limit, action in (("kl", watch.kl, watch.kl_action), ("ess", watch.ess, watch.ess_action)):
        if limit is not None and action == "stop_passes":
            yield Problem(
                (f"watch.{name}_action", f"watch.{name}", "algorithm.iterations", "algorithm.batch_ratio"),
                f"watch.{name}_action=stop_passes has nothing to stop: a rollout has one optimizer step "
                f"(algorithm.iterations x algorithm.batch_ratio = 1); raise these, or set watch.{name}_action to 'warn' or "
                f"'stop'",
            )


def long_enough(config: Config) -> Iterator[Problem]:
    """The run is as long as a limit looks back."""
    watch, total = config.watch, config.trainer.total_steps
    looks_back = (
        ("entropy_slope", watch.entropy_slope, watch.window, "watch.window"),
        ("length_drift", watch.length_drift, 2 * watch.window, "watch.window"),
        ("zero_reward_streak", watch.zero_reward_streak, watch.zero_reward_streak or 0, "watch.zero_reward_streak"),
    )
    for name, limit, steps, key in looks_back:
        if limit is not None and steps > total > 0:
            yield Problem(
                (f"watch.{name}", key, "trainer.total_steps"),
                f"watch.{name}={limit:g} looks back on {steps} rollout steps, but trainer.total_steps={total}, so it could "
                f"never be crossed; lower {key}, or leave watch.{name} out",
            )


RULES = (actions, passes_to_stop, long_enough)
