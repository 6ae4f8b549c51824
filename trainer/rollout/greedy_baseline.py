"""ReMax's baseline: what the policy's greedy response to each prompt earns."""

from dataclasses import replace

import torch
from torch import Tensor

from cfpo_hybrid.protocol import SCHEMA, DataProto
from trainer.rollout.advantages import overlong_penalty
from trainer.session import Session
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker


def greedy_rewards(session: Session, batch: DataProto) -> Tensor:
    """Generates and scores one greedy response a prompt: Li et al., 2023 (arXiv 2310.10505), algorithm 1.

    Args:
        session: whose workers still hold the weights that sampled.
        batch: the rollout.

    Returns:
        For each row the reward of the greedy response to its prompt, less its over-long penalty, ``[batch]``.
    """
    asked = [name for name in batch.column_names if SCHEMA[name].writer == "data"]
    prompts = batch.select(*asked).rows(batch["sample_ids"] == 0)
    answers = prompts.merge(session.actors.run(HybridWorker.generate, prompts, replace(session.sampling, greedy=True)))
    rewards = session.graders.run(RewardWorker.score, answers)["rewards"]
    rewards = rewards - overlong_penalty(answers, session.config.algorithm)
    groups, row_to_group = torch.unique(batch["group_ids"], return_inverse=True)
    of_group = torch.empty_like(rewards)
    of_group[torch.searchsorted(groups, answers["group_ids"])] = rewards
    return of_group[row_to_group]
