"""Off-policy pressure in words: how far the policy in training may be from the one that sampled."""

from workers.step_plan import StepPlan


def pressure_line(plan: StepPlan) -> str:
    """The pressure of a run in one line, e.g. ``16 optimizer steps a rollout, 15 of them off-policy, ...``."""
    uses = "once" if plan.iterations == 1 else f"{plan.iterations} times"
    parts = [
        f"{_count(plan.optimizer_steps, 'optimizer step')} a rollout",
        f"{plan.off_policy_steps} of them off-policy",
        f"largest lag {plan.largest_lag}",
        f"each sample used {uses}",
    ]
    if plan.weight_lag:
        parts.append(f"sampled by weights {_count(plan.weight_lag, 'rollout step')} old")
    if plan.log_prob_noise:
        parts.append(f"noise of {plan.log_prob_noise:g} nats on the rollout's log-probs")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
