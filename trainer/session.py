"""What a run holds while it lasts: the worker groups, the prompts and the clock."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import ResourcePool, WorkerGroup
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.advantages import mean_ref_kl
from trainer.config import Config
from trainer.data import TrainPrompts
from trainer.metrics import StageTimer
from trainer.ray_cluster import ray_cluster
from workers.config import AlgorithmConfig, ModelConfig, RewardConfig
from workers.hybrid_worker import HybridWorker
from workers.process import worker_environment
from workers.reports import SyncReport, UpdateRecord
from workers.reward.reward_worker import RewardWorker
from workers.reward.user_function import find_reward
from workers.rollout.engine import SamplingSettings
from workers.settings import HybridSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one training step did.

    Args:
        step: the rollout step, counted from 0.
        batch: the rollout with rewards and advantages; its wide columns may lie elsewhere.
        kl_coef: weight of the KL penalty that the step was trained with.
        reward_meta: counters of each reward worker.
        updates: each optimizer step.
        sync: the reshard at the end.
    """

    step: int
    batch: DataProto
    kl_coef: float
    reward_meta: list[dict[str, Any]]
    updates: list[UpdateRecord]
    sync: SyncReport


@dataclass(kw_only=True, slots=True)
class Session:
    """The live parts of a run, for the step, validation and checkpoints.

    Args:
        config: of the run.
        actors: the hybrid workers.
        graders: the reward workers.
        prompts: training prompts by step.
        timer: seconds by stage.
        kl: the weight of the KL penalty, which may be steered.
        loss_takes_statistics: the policy loss needs old_log_probs of the whole mini-batch before its update.
    """

    config: Config
    actors: WorkerGroup
    graders: WorkerGroup
    prompts: TrainPrompts
    timer: StageTimer
    kl: KlController
    loss_takes_statistics: bool = False

    @property
    def timed(self) -> Callable[[str], AbstractContextManager[None]]:
        """Adds the time of a block to a stage."""
        return self.timer.timed

    @property
    def needs_log_probs(self) -> bool:
        """Whether step 4 has something to add: the only optimizer step of a rollout trains the policy that sampled, so its
        ratio is 1 without a pass for old_log_probs, unless the rollout lags behind. Those of the rollout need none either.
        The pass also says how much truncated sampling keeps.
        """
        algorithm = self.config.algorithm
        if algorithm.old_log_probs == "rollout":
            return algorithm.kl_coef > 0
        off_policy = self.config.updates_per_step > 1 or algorithm.weight_lag > 0
        of_the_batch = self.loss_takes_statistics or self.config.rollout.truncates
        return off_policy or of_the_batch or algorithm.kl_coef > 0

    @property
    def kl_meta(self) -> dict[str, float]:
        """What the workers need to be told of the KL penalty: its weight in the loss, where that is steered."""
        algorithm = self.config.algorithm
        return {} if algorithm.kl_in_reward or algorithm.kl_target is None else {"kl_coef": self.kl.coef}

    def adjust_kl(self, batch: DataProto) -> float:
        """Steers the weight of the KL penalty by the KL of this rollout, and returns the weight it was trained with."""
        used, kl = self.kl.coef, mean_ref_kl(batch)
        if kl is not None:
            self.kl = self.kl.after(kl, len(batch))
        return used

    @contextmanager
    def newest_weights(self) -> Iterator[None]:
        """For validation: the policy in training generates, also where rollouts lag behind it."""
        if not self.config.algorithm.weight_lag:
            yield
            return
        self.actors.run(HybridWorker.sync_weights, True)
        yield
        self.actors.run(HybridWorker.sync_weights)

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

    @property
    def validation_sampling(self) -> SamplingSettings:
        """How validation responses are sampled; temperature 0 is greedy."""
        trainer = self.config.trainer
        return SamplingSettings(
            max_tokens=self.config.data.max_response_length,
            temperature=trainer.val_temperature or 1.0,
            top_p=trainer.val_top_p,
            greedy=trainer.val_temperature == 0,
        )


def replica_meta(answer: DataProto) -> list[dict[str, Any]]:
    """What each replica wrote into the metadata of its part of an answer."""
    return cast(list[dict[str, Any]], answer.meta["replicas"])


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


def initial_kl(algorithm: AlgorithmConfig) -> KlController:
    """The KL penalty at the start of a run."""
    return KlController(coef=algorithm.kl_coef, target=algorithm.kl_target, horizon=algorithm.kl_horizon)


def absolute_model(model: ModelConfig) -> ModelConfig:
    """The model with a local path made absolute: workers on a cluster start in folders of their own."""
    path = Path(model.path)
    return replace(model, path=str(path.absolute())) if path.exists() else model


def absolute_reward(reward: RewardConfig) -> RewardConfig:
    """The reward with the path of a user's file made absolute."""
    own = find_reward(reward.name)
    return reward if own is None else replace(reward, name=f"{own.path}:{own.name}")


def hybrid_settings(config: Config) -> HybridSettings:
    """What the hybrid workers need to know of a configuration."""
    return HybridSettings(
        model=absolute_model(config.model),
        actor=config.actor,
        rollout=config.rollout,
        algorithm=config.algorithm,
        policy_loss=config.policy_loss,
        train_layout=config.train_layout,
        rollout_layout=config.rollout_layout,
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.data.max_response_length,
        total_optimizer_steps=config.total_updates,
        ranks_per_node=config.trainer.workers_on_a_node,
        seed=config.trainer.seed,
        device=resolve_device(config.trainer.device),
    )


@contextmanager
def open_session(config: Config, prompts: TrainPrompts, on_stage: Callable[[str], None]) -> Iterator[Session]:
    """Starts Ray (or joins a cluster) and the worker groups; stops all of them at the end, whatever happened.

    Args:
        config: of the run.
        prompts: training prompts.
        on_stage: is told the name of each stage as it begins.
    """
    device = resolve_device(config.trainer.device)
    with ExitStack() as stack:
        stack.enter_context(ray_cluster(config.trainer, device))
        graders = stack.enter_context(start_graders(config.model, config.reward))
        actors = stack.enter_context(start_actors(config, device))
        timer = StageTimer(on_enter=on_stage)
        loss = build_policy_loss(config.policy_loss.name, **config.policy_loss.knobs)
        yield Session(
            config=config,
            actors=actors,
            graders=graders,
            prompts=prompts,
            timer=timer,
            kl=initial_kl(config.algorithm),
            loss_takes_statistics=loss.needs_statistics,
        )


def start_actors(config: Config, device: str) -> RayWorkerGroup:
    """The hybrid workers, packed per node; their engines are not built yet."""
    trainer = config.trainer
    pool = ResourcePool(
        num_nodes=trainer.nodes,
        workers_per_node=trainer.workers_on_a_node,
        cpus_per_worker=trainer.cpus_per_worker,
        gpus_per_worker=1 if device == "cuda" else 0,
    )
    return RayWorkerGroup.create(
        HybridWorker,
        args=(hybrid_settings(config),),
        pool=pool,
        layouts={"train": config.train_layout, "rollout": config.rollout_layout},
        role="hybrid",
        env=worker_environment(device, max(1, trainer.cpus_per_worker)),
    )


def start_graders(model: ModelConfig, reward: RewardConfig) -> RayWorkerGroup:
    """One reward worker on the driver's side of the cluster; its own processes do the grading."""
    return RayWorkerGroup.create(
        RewardWorker,
        args=(absolute_model(model), absolute_reward(reward)),
        pool=ResourcePool(num_nodes=1, workers_per_node=1, cpus_per_worker=0, gpus_per_worker=0),
        layouts={"reward": ParallelLayout()},
        role="reward",
        env=worker_environment("cpu", 1),
    )
