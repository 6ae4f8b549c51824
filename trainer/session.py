"""What a run holds while it lasts: the worker groups, which may outlive it, the prompts and the clock."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import WorkerGroup
from trainer.config import Config
from trainer.data import TrainPrompts
from trainer.run.metrics import StageTimer, mean_ref_kl
from trainer.run.reward_failures import RewardFailures
from workers.config import ModelConfig, RewardConfig
from workers.hybrid_worker import HybridWorker
from workers.messages import HybridSettings, SyncReport
from workers.reward.user_function import find_reward
from workers.rollout.engine import SamplingSettings
from workers.step_plan import StepPlan


@dataclass(kw_only=True, slots=True)
class Session:
    """The live parts of a run, for the step, validation and checkpoints.

    Args:
        config: of the run.
        actors: the hybrid workers.
        graders: the reward workers.
        prompts: training prompts.
        timer: seconds by stage.
        kl: the weight of the KL penalty, which may be steered.
        prompts_consumed: prompts drawn so far, the place in the data.
        rollout_lag: rollout steps by which the weights in vLLM are older than the policy in training.
        reshards: reports that are not recorded yet, the oldest first.
        reward_failures: looks at calls of reward functions that failed.
        inputs: fingerprint of the starting model and the prompts, for checkpoints.
    """

    config: Config
    actors: WorkerGroup
    graders: WorkerGroup
    prompts: TrainPrompts
    timer: StageTimer
    kl: KlController
    prompts_consumed: int = 0
    rollout_lag: int = 0
    reshards: list[SyncReport] = field(default_factory=list)
    reward_failures: RewardFailures = field(default_factory=RewardFailures)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> StepPlan:
        """What a rollout step does."""
        return self.config.plan

    @property
    def timed(self) -> Callable[[str], AbstractContextManager[None]]:
        """Adds the time of a block to a stage."""
        return self.timer.timed

    def reshard(self, *, probe: bool, newest: bool = False) -> SyncReport:
        """Moves the weights into vLLM, which is awake then while Megatron sleeps; keeps the report for the record.

        Args:
            probe: proves that both engines hold the same weights.
            newest: the policy in training, also where rollouts lag behind it.
        """
        report = self.actors.run(HybridWorker.sync_weights, probe, newest)
        self.rollout_lag = report.weight_lag
        self.reshards.append(report)
        return report

    def take_reshards(self) -> list[SyncReport]:
        """The reports of all reshards since the last call."""
        taken, self.reshards = self.reshards, []
        return taken

    @contextmanager
    def newest_weights(self) -> Iterator[None]:
        """For validation: the policy in training generates, also where the weights in vLLM lag behind it."""
        if not self.rollout_lag:
            yield
            return
        self.reshard(probe=False, newest=True)
        yield
        self.reshard(probe=False)

    @property
    def kl_meta(self) -> dict[str, float]:
        """What the workers need to be told of the KL penalty: its weight in the loss, where that is steered."""
        return {"kl_coef": self.kl.coef} if self.plan.kl_in_loss and self.kl.target is not None else {}

    def adjust_kl(self, batch: DataProto) -> float:
        """Steers the weight of the KL penalty by the KL of this rollout, and returns the weight it was trained with."""
        used, kl = self.kl.coef, mean_ref_kl(batch)
        if kl is not None:
            self.kl = self.kl.after(kl, len(batch))
        return used

    @property
    def sampling(self) -> SamplingSettings:
        """How training responses are sampled."""
        rollout = self.config.rollout
        return SamplingSettings(
            max_tokens=self.config.data.max_response_length,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        )


def validation_sampling(config: Config) -> SamplingSettings:
    """How validation responses are sampled; temperature 0 is greedy."""
    trainer = config.trainer
    return SamplingSettings(
        max_tokens=config.data.max_response_length,
        temperature=trainer.val_temperature or 1.0,
        top_p=trainer.val_top_p,
        greedy=trainer.val_temperature == 0,
    )


def is_due(every: int, step: int, *, last: int | None = None) -> bool:
    """Whether what happens every so many rollout steps happens after this one, counted from 1; 0 is never.

    Args:
        every: that many.
        step: the step.
        last: of the run, where it happens after that one in any case.
    """
    return every > 0 and (step % every == 0 or step == last)


def checkpoint_layout(config: Config) -> dict[str, int]:
    """How the workers that write a checkpoint are laid out."""
    layout = config.train_layout
    sharded = int(config.actor.megatron.distributed_optimizer)
    return {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp, "distributed_optimizer": sharded}


def resolve_device(device: str) -> str:
    """``"cpu"`` or ``"cuda"`` for ``trainer.device``."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def absolute_model(model: ModelConfig) -> ModelConfig:
    """The model with a local path made absolute: workers on a cluster start in folders of their own."""
    path = Path(model.path)
    return replace(model, path=str(path.absolute())) if path.exists() else model


def absolute_reward(reward: RewardConfig) -> RewardConfig:
    """The reward with the paths of a user's files made absolute."""
    further = [find_reward(name, "reward.further") for name in reward.further]
    return replace(reward, name=find_reward(reward.name), further=further)


def hybrid_settings(config: Config) -> HybridSettings:
    """What the hybrid workers need to know of a configuration."""
    return HybridSettings(
        model=absolute_model(config.model),
        actor=config.actor,
        rollout=config.rollout,
        algorithm=config.algorithm,
        policy_loss=config.policy_loss,
        watch=config.watch,
        plan=config.plan,
        train_layout=config.train_layout,
        rollout_layout=config.rollout_layout,
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.data.max_response_length,
        total_optimizer_steps=config.total_updates,
        ranks_per_node=config.trainer.workers_on_a_node,
        seed=config.trainer.seed,
        device=resolve_device(config.trainer.device),
    )
