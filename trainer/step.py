"""One training step: from prompts to new weights, in the order of docs/way_of_a_batch.md."""

from trainer.advantages import advantages_of
from trainer.mini_batches import assign_mini_batches
from trainer.session import Session, StepReport, replica_meta
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker


def train_step(session: Session, step: int) -> StepReport:
    """Runs rollout step ``step``, counted from 0, and returns what happened."""
    config, timed, actors = session.config, session.timed, session.actors
    with timed("data"):  # 1
        prompts = session.prompts.next_batch(step)
    with timed("generate"):  # 2
        batch = prompts.merge(actors.run(HybridWorker.generate, prompts, session.sampling))
    with timed("reward"):  # 3
        rewards = session.graders.run(RewardWorker.score, batch)
        batch = batch.merge(rewards)
    if session.needs_log_probs:
        with timed("old_log_probs"):  # 4
            batch = batch.merge(actors.run(HybridWorker.compute_log_probs, batch))
    with timed("advantages"):  # 5
        advantages = advantages_of(batch, config.algorithm, session.kl.coef)
        mini_batch = assign_mini_batches(batch["group_ids"], config.algorithm.batch_ratio, config.trainer.seed, step)
        batch = batch.with_columns(advantages=advantages, mini_batch=mini_batch).with_meta(**session.kl_meta)
    with timed("update"):  # 6
        updates = actors.run(HybridWorker.update_policy, batch)[0]
    with timed("reshard"):  # 7
        sync = actors.run(HybridWorker.sync_weights)
    kl_coef = session.adjust_kl(batch)
    # 8 is TrainingLoop's
    return StepReport(
        step=step, batch=batch, kl_coef=kl_coef, reward_meta=replica_meta(rewards), updates=updates, sync=sync
    )
