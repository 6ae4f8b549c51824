"""Steps 1 to 3: prompts, responses and rewards, in one round or in several that replace groups without signal; the greedy
responses that ReMax compares them with; and which optimizer step of a pass uses which row.

Several rounds are dynamic sampling (DAPO, Yu et al., 2025, arXiv 2503.14476, section 3.2): the responses to a prompt that
all earn the same give advantages of 0, so such groups are dropped and further prompts are drawn in their place. Decided by
the scores, before a KL or over-long penalty. The batch keeps its size whatever happens: after the last round, dropped
groups fill it up, and what is over of the groups with signal is left out; both in the order they were drawn.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from cfpo_hybrid.protocol import SCHEMA, DataProto
from trainer.data.order import mean_level
from trainer.rollout.advantages import overlong_penalty
from trainer.run.metrics import group_extremes, reward_metrics
from trainer.session import Session
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """What a step trains on.

    Args:
        batch: ``train_batch_size`` groups with rewards.
        reward_meta: counters of the reward workers, over all rounds.
        metrics: of the data and of the rounds.
    """

    batch: DataProto
    reward_meta: list[dict[str, Any]]
    metrics: dict[str, float]


def sample_rollout(session: Session, step: int) -> Rollout:
    """Draws prompts, samples responses and scores them; moves the session's place in the data on."""
    size, most_rounds = session.config.data.train_batch_size, session.config.rollout.generation_rounds
    rounds, reward_meta = [], []
    drawn, wanted = 0, size
    while wanted and len(rounds) < most_rounds:
        scored, counters = _sample_round(session, step, first_group=drawn, count=wanted)
        rounds, reward_meta, drawn = [*rounds, scored], reward_meta + counters, drawn + wanted
        signal = torch.cat([groups_with_signal(part["rewards"], part["group_ids"])[0] for part in rounds])
        wanted = prompts_to_draw(size, drawn, int(signal.sum()))
    if most_rounds == 1:
        batch, metrics = rounds[0], {}
    else:
        everything = DataProto.concat(rounds)
        batch = everything.rows(chosen_rows(everything["rewards"], everything["group_ids"], size))
        metrics = _sampling_metrics(everything, len(rounds), drawn)
    if session.plan.greedy_baseline:
        with session.timed("greedy_baseline"):
            batch = batch.with_columns(greedy_rewards=greedy_rewards(session, batch))
    return Rollout(batch=batch, reward_meta=reward_meta, metrics=metrics | _batch_metrics(session, batch))


def greedy_rewards(session: Session, batch: DataProto) -> Tensor:
    """Generates and scores one greedy response a prompt: Li et al., 2023 (arXiv 2310.10505), algorithm 1.

    Args:
        session: whose workers still hold the weights that sampled.
        batch: the rollout.

    Returns:
        For each row the reward of the greedy response to its prompt, less its over-long penalty, ``[batch]``; NaN where
        no reward has an opinion on it.
    """
    asked = [name for name in batch.column_names if SCHEMA[name].writer == "data"]
    prompts = batch.select(*asked).rows(batch["sample_ids"] == 0)
    answers = prompts.merge(session.actors.run(HybridWorker.generate, prompts, replace(session.sampling, greedy=True)))
    scored = session.graders.run(RewardWorker.score, answers)
    session.reward_failures.look(_replicas(scored))
    rewards = scored["rewards"] - overlong_penalty(answers, session.config.algorithm)
    groups, row_to_group = torch.unique(batch["group_ids"], return_inverse=True)
    of_group = torch.empty_like(rewards)
    of_group[torch.searchsorted(groups, answers["group_ids"])] = rewards
    return of_group[row_to_group]


def prompts_to_draw(size: int, drawn: int, with_signal: int) -> int:
    """Prompts of the next round: as many as should fill the batch at this step's share of groups with signal, and no more
    than a batch; 0 when it is full.

    Example: 16 wanted, 16 drawn, 8 of them with signal: half of the next ones will do, so 16.
    """
    missing = max(size - with_signal, 0)
    return min(size, math.ceil(missing * drawn / max(with_signal, 1)))


def groups_with_signal(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each group has different rewards, ``[group]`` by ascending id, and the group of each row, ``[batch]``.

    Responses without a reward (NaN) do not count; a group that has no other teaches nothing.
    """
    lowest, highest, row_to_group = group_extremes(rewards, group_ids)
    return lowest < highest, row_to_group


def chosen_rows(rewards: Tensor, group_ids: Tensor, size: int) -> Tensor:
    """The rows of ``size`` groups, ``[batch]`` bool: those with signal first, then the others, each by ascending id."""
    signal, row_to_group = groups_with_signal(rewards, group_ids)
    order = torch.argsort((~signal).long(), stable=True)
    kept = torch.zeros(len(signal), dtype=torch.bool)
    kept[order[:size]] = True
    return kept[row_to_group]


def assign_mini_batches(
    group_ids: Tensor, batch_ratio: int, seed: int, step: int, tokens: Tensor | None = None
) -> Tensor:
    """Deals the groups of a rollout batch into ``batch_ratio`` mini-batches of equal numbers of groups.

    The draw depends on (seed, step) and the tokens alone, never on the layout, and holds for every iteration over the
    batch: a sample meets the same companions in the same order in each pass, as in verl's and TRL's default, so that the
    lag of a mini-batch is its position.

    Args:
        group_ids: ``[batch]``, the prompt of each row.
        batch_ratio: number of mini-batches; divides the number of groups.
        seed: the run's seed.
        step: the rollout step.
        tokens: ``[batch]`` int64 of each row; given, mini-batches have nearly equal numbers of them: none has more than
            another by over the tokens of the longest group.

    Returns:
        ``[batch]`` int64 in ``0 .. batch_ratio - 1``.
    """
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(groups), generator=generator)
    mini_batch_of_group = torch.empty(len(groups), dtype=torch.int64)
    if tokens is None:
        mini_batch_of_group[order] = torch.arange(len(groups)) * batch_ratio // len(groups)
    else:
        sizes = torch.zeros(len(groups), dtype=torch.int64).scatter_add(0, row_to_group, tokens)
        order = order[sizes[order].argsort(descending=True, stable=True)]
        # Which mini-batch comes first is drawn, so that the lag of a group does not hang on its length.
        places = torch.randperm(batch_ratio, generator=generator)
        mini_batch_of_group[order] = places[_deal(sizes[order], batch_ratio)]
    return mini_batch_of_group[row_to_group]


def _sample_round(
    session: Session, step: int, *, first_group: int, count: int
) -> tuple[DataProto, list[dict[str, Any]]]:
    timed = session.timed
    with timed("data"):  # 1
        prompts = session.prompts.draw(session.prompts_consumed, count, step=step, first_group=first_group)
        session.prompts_consumed += count
    with timed("generate"):  # 2
        batch = prompts.merge(session.actors.run(HybridWorker.generate, prompts, session.sampling))
    with timed("reward"):  # 3
        scored = session.graders.run(RewardWorker.score, batch)
    session.reward_failures.look(_replicas(scored))
    return _without_gradient(batch.merge(scored)), _replicas(scored)


def _replicas(scored: DataProto) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], scored.meta["replicas"])


def _without_gradient(batch: DataProto) -> DataProto:
    """Takes responses that no reward has an opinion on out of the loss."""
    unknown = batch["rewards"].isnan()
    if not unknown.any():
        return batch
    return batch.with_columns(response_mask=batch["response_mask"] & ~unknown.unsqueeze(1))


def _sampling_metrics(everything: DataProto, rounds: int, drawn: int) -> dict[str, float]:
    """What the rounds did; rewards are those of all responses, dropped ones included."""
    found = reward_metrics(everything["rewards"], everything["group_ids"])
    metrics = {
        "sampling/rounds": float(rounds),
        "sampling/prompts_drawn": float(drawn),
        "sampling/groups_without_signal": found["reward/groups_without_signal"],
    }
    rewards = {f"sampling/reward_{name}": found.get(f"reward/{name}") for name in ("mean", "std", "stderr")}
    return metrics | {name: value for name, value in rewards.items() if value is not None}


def _deal(sizes: Tensor, parts: int) -> Tensor:
    """The part of each group: hand after hand of one group for each part, the largest to the part with least so far.

    Args:
        sizes: ``[group]``, descending.
        parts: number of parts.
    """
    totals = torch.zeros(parts, dtype=torch.int64)
    dealt = []
    for hand in sizes.split(parts):
        lightest_first = totals.argsort(stable=True)[: len(hand)]
        totals[lightest_first] += hand
        dealt.append(lightest_first)
    return torch.cat(dealt)


def _batch_metrics(session: Session, batch: DataProto) -> dict[str, float]:
    data, algorithm = session.config.data, session.config.algorithm
    metrics = {"data/prompts_consumed": float(session.prompts_consumed)}
    if data.curriculum != "none":
        metrics["data/level"] = mean_level(batch["extra"], data.level_key)
    if algorithm.overlong_buffer:
        metrics["reward/overlong_penalty"] = float(overlong_penalty(batch, algorithm).mean())
    return metrics
