"""One training step: from prompts to new weights, in the order of docs/way_of_a_batch.md."""

from trainer.rollout.advantages import advantages_of
from trainer.rollout.rollout import assign_mini_batches, sample_rollout
from trainer.run.metrics import StepReport
from trainer.session import Session, is_due
from workers.hybrid_worker import HybridWorker


def train_step(session: Session, step: int) -> StepReport:
    """Runs rollout step ``step``, counted from 0, and returns what happened; vLLM is awake before and after it."""
    config, plan, timed, actors = session.config, session.plan, session.timed, session.actors
    rollout = sample_rollout(session, step)  # 1 data, 2 generate, 3 reward
    # Dealt before step 4, whose pass then cuts the rows as the update will: ratios of the first optimizer step are 1.
    tokens = rollout.batch.num_tokens if config.algorithm.balance_mini_batches else None
    groups, seed = rollout.batch["group_ids"], config.trainer.seed
    batch = rollout.batch.with_columns(mini_batch=assign_mini_batches(groups, plan.batch_ratio, seed, step, tokens))
    with timed("wake_training"):
        actors.run(HybridWorker.wake_training)
    if plan.log_prob_pass:
        with timed("old_log_probs"):  # 4
            batch = batch.merge(actors.run(HybridWorker.compute_log_probs, batch))
    with timed("advantages"):  # 5
        advantages = advantages_of(batch, config.algorithm, session.kl.coef if plan.kl_in_reward else 0.0)
        batch = batch.with_columns(advantages=advantages).with_meta(**session.kl_meta)
    with timed("update"):  # 6
        update = actors.run(HybridWorker.update_policy, batch)[0]
    with timed("reshard"):  # 7
        sync = session.reshard(probe=is_due(config.rollout.probe_every, step + 1))
    kl_coef = session.adjust_kl(batch)
    # 8 is TrainingLoop's
    return StepReport(
        step=step,
        batch=batch,
        kl_coef=kl_coef,
        reward_meta=rollout.reward_meta,
        metrics=rollout.metrics,
        updates=update.updates,
        trips=update.trips,
        policy_version=sync.trained_version,
    )
