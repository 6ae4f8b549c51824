"""Tables of the traffic of a reshard plan: rank by rank, or as extremes where there are many ranks."""

from collections.abc import Callable, Iterable
from statistics import fmean

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cfpo_hybrid.resharding.traffic import PlanTraffic, RankTraffic

SMALL_WORLD = 16
"""Ranks that are shown one by one."""

COLUMNS: dict[str, Callable[[RankTraffic], int]] = {
    "local": lambda rank: rank.local,
    "sent": lambda rank: rank.sent,
    "received": lambda rank: rank.received,
    "lower bound": lambda rank: rank.lower_bound,
}


def traffic_report(traffic: PlanTraffic) -> str:
    """A table and a line below it."""
    table = Table("rank", *COLUMNS, "ratio")
    if len(traffic.ranks) <= SMALL_WORLD:
        for number, rank in enumerate(traffic.ranks):
            _add_row(table, str(number), (value(rank) for value in COLUMNS.values()), rank.ratio)
    else:
        ratios = [rank.ratio for rank in traffic.ranks]
        for name, summary in (("least", min), ("mean", fmean), ("most", max)):
            sizes = (summary([value(rank) for rank in traffic.ranks]) for value in COLUMNS.values())
            _add_row(table, name, sizes, summary(ratios))
    console = Console()
    with console.capture() as capture:
        console.print(table)
    crossing = sum(rank.sent_to_other_nodes for rank in traffic.ranks)
    return (
        f"{capture.get()}"
        f"all ranks: {decimal(sum(rank.received for rank in traffic.ranks))} cross processes, {decimal(crossing)} of it "
        f"nodes; {traffic.ratio:.3f} times the lower bound; largest sender over mean {traffic.imbalance:.3f}"
    )


def _add_row(table: Table, name: str, sizes: Iterable[float], ratio: float) -> None:
    table.add_row(name, *(decimal(round(size)) for size in sizes), f"{ratio:.3f}")
