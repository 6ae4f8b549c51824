"""Numbers, layouts and off-policy pressure in words, as several commands print them."""

from datetime import timedelta

from cfpo_hybrid.models import PipelineCut
from cfpo_hybrid.parallel_layout import ParallelLayout
from trainer.config.problem import count
from workers.step_plan import StepPlan


def duration(seconds: float) -> str:
    """Seconds for people, e.g. ``0:01:42``."""
    return str(timedelta(seconds=round(seconds)))


def training_line(layout: ParallelLayout, cut: PipelineCut) -> str:
    """The sizes of a training layout; those that are mostly 1 only where they are not.

    Example: ``Megatron dp 2 x pp 2 (in 2 chunks each) x tp 1, ep 2``.
    """
    chunks = f" (in {cut.chunks} chunks each)" if cut.chunks > 1 else ""
    cp = f" x cp {layout.cp}" if layout.cp > 1 else ""
    ep = f", ep {layout.ep}" if layout.ep > 1 else ""
    return f"Megatron dp {layout.dp} x pp {layout.pp}{chunks}{cp} x tp {layout.tp}{ep}"


def pressure_line(plan: StepPlan) -> str:
    """How far the policy in training may be from the one that sampled.

    Example: ``16 optimizer steps a rollout, 15 of them off-policy, largest lag 15, each sample used 4 times``.
    """
    uses = "once" if plan.iterations == 1 else f"{plan.iterations} times"
    parts = [
        f"{count(plan.optimizer_steps, 'optimizer step')} a rollout",
        f"{plan.off_policy_steps} of them off-policy",
        f"largest lag {plan.largest_lag}",
        f"each sample used {uses}",
    ]
    if plan.weight_lag:
        parts.append(f"sampled by weights {count(plan.weight_lag, 'rollout step')} old")
    if plan.log_prob_noise:
        parts.append(f"noise of {plan.log_prob_noise:g} nats on the rollout's log-probs")
    return ", ".join(parts)
