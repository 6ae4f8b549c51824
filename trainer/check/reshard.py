"""What ``cfpo reshard-plan`` prints: the layouts, and who sends how much in a weight sync, beside the lower bound."""

import time
from collections.abc import Callable, Iterable
from statistics import fmean

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.models.weight_plan import Handover, Placement, rollout_specs, training_specs, weight_plan
from cfpo_hybrid.resharding import ReshardPlan, check_plan
from cfpo_hybrid.resharding.traffic import PlanTraffic, RankTraffic, plan_traffic
from trainer.check.fitting import device_of
from trainer.check.memory import rollout_width
from trainer.config.model import LoadedConfig
from trainer.config.problem import count
from trainer.terminal.words import training_line

SMALL_WORLD = 16
"""Ranks that are shown one by one."""

COLUMNS: dict[str, Callable[[RankTraffic], int]] = {
    "local": lambda rank: rank.local,
    "sent": lambda rank: rank.sent,
    "received": lambda rank: rank.received,
    "lower bound": lambda rank: rank.lower_bound,
}


def plan_reshard(loaded: LoadedConfig) -> tuple[ReshardPlan, str]:
    """The plan of a run's weight sync, proved, and what to say of it: the layouts, a table of ranks, and sums.

    Of many ranks some are proved and only extremes are shown.
    """
    config, shape = loaded.config, loaded.model.shape
    handover = Handover(
        shape=shape,
        training=config.train_layout,
        rollout=config.rollout_layout,
        placement=Placement.colocated(config.trainer.world_size),
        ranks_per_node=config.trainer.workers_on_a_node,
        cut=config.actor.megatron.cut,
    )
    begin = time.perf_counter()
    plan = weight_plan(handover)
    seconds = time.perf_counter() - begin
    sources, destinations = training_specs(handover), rollout_specs(handover)
    # Every worker proves its own part at its start; here some of many ranks are enough.
    proved = range(0, plan.world_size, max(1, plan.world_size // SMALL_WORLD))
    check_plan(plan, sources, destinations, hf_shapes(shape), proved)
    traffic = plan_traffic(plan, sources, destinations, rollout_width(config, device_of(config, None)))
    rollout = handover.rollout
    return plan, (
        f"{training_line(handover.training, handover.cut)} -> vLLM {count(rollout.dp, 'replica')} of tp {rollout.tp}; planned "
        f"in {seconds:.2f} s, proved for {len(proved)} of {count(plan.world_size, 'rank')}\n{_traffic_report(traffic)}"
    )


def _traffic_report(traffic: PlanTraffic) -> str:
    """A table and a line below it."""
    console = Console()
    with console.capture() as capture:
        console.print(_table(traffic))
    crossing = sum(rank.sent_to_other_nodes for rank in traffic.ranks)
    return (
        f"{capture.get()}"
        f"all ranks: {decimal(sum(rank.received for rank in traffic.ranks))} cross processes, {decimal(crossing)} of it "
        f"nodes; {traffic.ratio:.3f} times the lower bound; largest sender over mean {traffic.imbalance:.3f}"
    )


def _table(traffic: PlanTraffic) -> Table:
    table = Table("rank", *COLUMNS, "ratio")
    if len(traffic.ranks) <= SMALL_WORLD:
        for number, rank in enumerate(traffic.ranks):
            _add_row(table, str(number), (value(rank) for value in COLUMNS.values()), rank.ratio)
    else:
        ratios = [rank.ratio for rank in traffic.ranks]
        for name, summary in (("least", min), ("mean", fmean), ("most", max)):
            sizes = (summary([value(rank) for rank in traffic.ranks]) for value in COLUMNS.values())
            _add_row(table, name, sizes, summary(ratios))
    return table


def _add_row(table: Table, name: str, sizes: Iterable[float], ratio: float) -> None:
    table.add_row(name, *(decimal(round(size)) for size in sizes), f"{ratio:.3f}")
