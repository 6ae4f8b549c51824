"""``cfpo reshard-plan RECIPE key=value ...``: who copies what to whom in a weight sync; starts nothing, needs no GPU."""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.shards import hf_shapes
from cfpo_hybrid.models.weight_plan import Handover, Placement, rollout_specs, training_specs, weight_plan
from cfpo_hybrid.resharding import check_plan
from cfpo_hybrid.resharding.traffic import plan_traffic
from trainer.check.device import device_of
from trainer.check.memory import rollout_width
from trainer.config import Config
from trainer.config.load import load_and_inspect
from trainer.rules import device, files, layout
from trainer.terminal.traffic_report import SMALL_WORLD, traffic_report
from trainer.terminal.words import training_line


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Plans, proves the plan, prints its traffic and saves it where that is asked for."""
    loaded = load_and_inspect(
        arguments.recipe,
        arguments.overrides,
        known_models=True,
        without={layout.context_parallel, device.kv_cache, *files.RULES},
    )
    if arguments.save and not Path(arguments.save).parent.is_dir():
        raise ConfigError(f"--save {arguments.save}: there is no folder '{Path(arguments.save).parent}'; make it first")
    if arguments.save and Path(arguments.save).is_dir():
        raise ConfigError(f"--save {arguments.save} is a folder; name a file in it")
    handover = _handover(loaded.config, loaded.model.shape)
    begin = time.perf_counter()
    plan = weight_plan(handover)
    seconds = time.perf_counter() - begin
    sources, destinations = training_specs(handover), rollout_specs(handover)
    # Every worker proves its own part at its start; here some of many ranks are enough.
    proved = range(0, plan.world_size, max(1, plan.world_size // SMALL_WORLD))
    check_plan(plan, sources, destinations, hf_shapes(handover.shape), proved)
    traffic = plan_traffic(plan, sources, destinations, rollout_width(loaded.config, device_of(loaded.config, None)))
    write(f"{_layouts(handover)}; planned in {seconds:.2f} s, proved for {len(proved)} of {plan.world_size} ranks")
    write(traffic_report(traffic))
    if arguments.save:
        plan.save(Path(arguments.save))
        write(f"saved as {arguments.save}")
    return 0


def _handover(config: Config, shape: ModelShape) -> Handover:
    return Handover(
        shape=shape,
        training=config.train_layout,
        rollout=config.rollout_layout,
        placement=Placement.colocated(config.trainer.world_size),
        ranks_per_node=config.trainer.workers_on_a_node,
        cut=config.actor.megatron.cut,
    )


def _layouts(handover: Handover) -> str:
    training, rollout = training_line(handover.training, handover.cut), handover.rollout
    return f"{training} -> vLLM {rollout.dp} replicas of tp {rollout.tp}"
