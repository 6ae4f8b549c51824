"""The worker groups of a run while they live: started once, and used again by runs whose engines are the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import ray

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool, WorkerGroup
from cfpo_hybrid.single_controller.ray_group import Patience, RayWorkerGroup
from trainer.config import Config, TrainerConfig
from trainer.launch.ray_cluster import ray_cluster
from trainer.session import absolute_model, absolute_reward, resolve_device
from workers.config import ModelConfig, RewardConfig, RolloutConfig
from workers.hybrid_worker import HybridWorker
from workers.process import worker_environment
from workers.reward.reward_worker import RewardWorker


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineIdentity:
    """What decides of the processes and engines that outlive a run; Megatron's model is built anew for each run.

    Args:
        pool: the workers and what each books.
        train_layout: Megatron's process groups.
        rollout_layout: vLLM's.
        model: that vLLM holds, and whose tokenizer the graders use.
        rollout: vLLM's settings, those of sampling and of the probe left out.
        dtype: of the actor, which vLLM may follow.
        max_model_len: longest prompt + response, in tokens.
        reward: of the graders.
    """

    pool: ResourcePool
    train_layout: ParallelLayout
    rollout_layout: ParallelLayout
    model: ModelConfig
    rollout: RolloutConfig
    dtype: str
    max_model_len: int
    reward: RewardConfig

    @classmethod
    def of(cls, config: Config) -> "EngineIdentity":
        """Those of a run: runs with equal ones can share live engines."""
        return cls(
            pool=hybrid_pool(config),
            train_layout=config.train_layout,
            rollout_layout=config.rollout_layout,
            model=absolute_model(config.model),
            rollout=_of_engine(config.rollout),
            dtype=config.actor.dtype,
            max_model_len=config.data.max_prompt_length + config.data.max_response_length,
            reward=absolute_reward(config.reward),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveEngines:
    """Worker groups that are up.

    Args:
        actors: the hybrid workers.
        graders: the reward workers.
        identity: what they were started for.
    """

    actors: WorkerGroup
    graders: WorkerGroup
    identity: EngineIdentity


Tell = Callable[[str], None]
"""Takes what is being waited for."""


def _nobody(what: str) -> None:
    """Where nobody is told."""


@contextmanager
def open_engines(config: Config, tell: Tell = _nobody) -> Iterator[LiveEngines]:
    """Starts Ray (or joins a cluster) and the worker groups; stops all of them at the end, whatever happened.

    Args:
        config: of the run.
        tell: is told what is waited for.
    """
    address = config.trainer.ray_address
    if not ray.is_initialized():
        tell("Ray to start on this machine" if address is None else f"the Ray cluster at '{address}' to answer")
    with ExitStack() as stack:
        stack.enter_context(ray_cluster(config.trainer, resolve_device(config.trainer.device)))
        tell("the reward worker to start")
        graders = stack.enter_context(start_graders(config.model, config.reward))
        tell(f"{hybrid_pool(config).describe()} to start")
        actors = stack.enter_context(start_actors(config, tell))
        yield LiveEngines(actors=actors, graders=graders, identity=EngineIdentity.of(config))


def hybrid_pool(config: Config) -> ResourcePool:
    """What the hybrid workers of a run book, packed per node."""
    trainer = config.trainer
    return ResourcePool(
        num_nodes=trainer.nodes,
        workers_per_node=trainer.workers_on_a_node,
        cpus_per_worker=trainer.cpus_per_worker,
        gpus_per_worker=1 if resolve_device(trainer.device) == "cuda" else 0,
    )


def start_actors(config: Config, tell: Tell = _nobody) -> RayWorkerGroup:
    """The hybrid workers; their engines are built when a run begins.

    Args:
        config: of the run.
        tell: is told which nodes or resources are missing, while they are waited for.

    Raises:
        ConfigError: the cluster cannot hold them; the message names the keys that say how many there are.
    """
    try:
        return RayWorkerGroup(
            HybridWorker,
            pool=hybrid_pool(config),
            layouts={"train": config.train_layout, "rollout": config.rollout_layout},
            role="hybrid",
            env=worker_environment(resolve_device(config.trainer.device), max(1, config.trainer.cpus_per_worker)),
            patience=_patience(config.trainer, tell),
        )
    except ConfigError as error:
        keys = (
            "trainer.num_workers, trainer.nodes, trainer.workers_per_node, trainer.cpus_per_worker, "
            "trainer.cluster_wait_seconds"
        )
        raise ConfigError(f"{error} ({keys})") from error


def start_graders(model: ModelConfig, reward: RewardConfig) -> RayWorkerGroup:
    """One reward worker on the driver's side of the cluster; its own processes do the grading."""
    return RayWorkerGroup(
        RewardWorker,
        args=(absolute_model(model), absolute_reward(reward)),
        pool=ResourcePool(num_nodes=1, workers_per_node=1, cpus_per_worker=0, gpus_per_worker=0),
        layouts={"reward": ParallelLayout()},
        role="reward",
        env=worker_environment("cpu", 1),
    )


def _patience(trainer: TrainerConfig, tell: Tell) -> Patience:
    """A Ray of the run's own has all its nodes when it has started; to a cluster more may join."""
    if trainer.ray_address is None:
        return Patience(tell=tell)
    seconds = trainer.cluster_wait_seconds
    return Patience(nodes_seconds=seconds, busy_seconds=seconds, tell=tell)


def _of_engine(rollout: RolloutConfig) -> RolloutConfig:
    """With the defaults in place of what each run may choose for itself in a live engine."""
    default = RolloutConfig()
    own = (
        "group_size",
        "generation_rounds",
        "temperature",
        "top_p",
        "top_k",
        "bucket_bytes",
        "probe_every",
        "probe_tolerance",
        "probe_action",
    )
    return replace(rollout, **{name: vars(default)[name] for name in own})
