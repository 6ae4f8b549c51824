"""Rules about off-policy pressure: where it comes from, what corrects it, what is injected, and the limits that watch it."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES
from trainer.config import Config
from trainer.config.problem import Problem, count, with_section
from trainer.run.reward_course import SHORTEST

OLD = "algorithm.old_log_probs"
CORRECTION = "algorithm.rollout_correction"
LAG = "algorithm.weight_lag"
NOISE = "algorithm.log_prob_noise"


def full_softmax(config: Config) -> Iterator[Problem]:
    """Truncated sampling, whose log-probs are renormalised over the kept tokens, is corrected by importance weights."""
    rollout = config.rollout
    if config.algorithm.rollout_correction.mode != "off":
        return
    for key, value, off in (("rollout.top_p", rollout.top_p, 1.0), ("rollout.top_k", rollout.top_k, -1)):
        if value != off:
            yield Problem(
                (key,),
                f"{key}={value} truncates sampling, so the sampled log-probs are not those of the full softmax that "
                f"the update uses, and every ratio would be off; set {key}={off} (validation has trainer.val_top_p), "
                f"or correct with algorithm.rollout_correction.mode=truncate or mask",
            )


def rollout_correction(config: Config) -> Iterator[Problem]:
    """The correction makes sense, and there is something to correct."""
    algorithm, correction = config.algorithm, config.algorithm.rollout_correction
    for key, message in correction.problems():
        yield Problem((f"{CORRECTION}.{key}",), with_section(CORRECTION, key, message))
    if correction.is_active and algorithm.old_log_probs == "rollout":
        yield Problem(
            (CORRECTION, f"{CORRECTION}.mode", OLD),
            f"{CORRECTION} weighs tokens by pi_old / pi_rollout, which is 1 with {OLD}=rollout; set {OLD}=recompute, or "
            f"leave the correction out",
        )


def weight_lag(config: Config) -> Iterator[Problem]:
    """At some time in the run the weights that sample have learnt something."""
    lag, steps = config.algorithm.weight_lag, config.trainer.total_steps
    if 0 < steps <= lag:
        yield Problem(
            (LAG, "trainer.total_steps"),
            f"{LAG}={lag} in a run of trainer.total_steps={steps} would sample from the starting weights alone; take a "
            f"lag below {steps}, or more steps",
        )


def noise(config: Config) -> Iterator[Problem]:
    """Somebody reads the noisy log-probs."""
    algorithm, name = config.algorithm, config.policy_loss.name
    if not algorithm.log_prob_noise or algorithm.old_log_probs == "rollout" or algorithm.rollout_correction.is_active:
        return
    if name in POLICY_LOSSES and "rollout_log_probs" in POLICY_LOSSES.get(name).needs:
        return
    yield Problem(
        (NOISE, OLD, CORRECTION),
        f"{NOISE}={algorithm.log_prob_noise:g} would change nothing: with {OLD}=recompute policy_loss.name={name} does not "
        f"read the rollout's log-probs; set {OLD}=rollout, or a mode of {CORRECTION}",
    )


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
                f"watch.{name}={limit:g} looks back on {count(steps, 'rollout step')}, but trainer.total_steps={total}, so it "
                f"could never be crossed; lower {key}, or leave watch.{name} out",
            )
    if watch.collapse and SHORTEST > total > 0:
        yield Problem(
            ("watch.collapse", "trainer.total_steps"),
            f"watch.collapse needs {SHORTEST} rollout steps to tell a collapse from noise, but trainer.total_steps={total}; "
            f"raise it, or leave watch.collapse out",
        )


RULES = (full_softmax, rollout_correction, weight_lag, noise, passes_to_stop, long_enough)
