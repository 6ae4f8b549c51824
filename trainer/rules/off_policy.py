"""Rules about off-policy pressure: where old log-probs come from, what is corrected, what is injected on purpose."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES
from trainer.config.problem import Problem, one_of, with_section
from trainer.config.schema import Config

OLD = "algorithm.old_log_probs"
CORRECTION = "algorithm.rollout_correction"
LAG = "algorithm.weight_lag"
NOISE = "algorithm.log_prob_noise"
SOURCES = ("recompute", "rollout")


def old_log_probs(config: Config) -> Iterator[Problem]:
    """The source of old log-probs is a known one."""
    yield from one_of(OLD, config.algorithm.old_log_probs, SOURCES)


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


def log_prob_noise(config: Config) -> Iterator[Problem]:
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


RULES = (old_log_probs, rollout_correction, weight_lag, log_prob_noise)
