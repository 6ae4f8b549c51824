"""A plan as a JSON file, to be looked at, compared and read back.

    {"version": 1, "world_size": 4, "ranks_per_node": 4,
     "cargos": [{"items": [{"tensor": ..., "start": [...], "size": [...], "destination": [name, [...]]}, ...],
                 "offers": [[[name, [...]], ...], ...]}, ...],
     "routes": [[source rank, destination rank, cargo, offer, first element, end], ...]}

An offer has a place for each item: the name of a parameter and where in it the item begins.
"""

import json
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Cargo, Item, Place, ReshardPlan, Route
from cfpo_hybrid.resharding.shard_spec import Rectangle

VERSION = 1


def save_plan(plan: ReshardPlan, path: Path) -> None:
    """Writes the file."""
    content = {
        "version": VERSION,
        "world_size": plan.world_size,
        "ranks_per_node": plan.ranks_per_node,
        "cargos": [
            {"items": [_from_item(item) for item in cargo.items], "offers": cargo.offers} for cargo in plan.cargos
        ],
        "routes": [route for routes in plan.routes for route in routes],
    }
    path.write_text(json.dumps(content))


def load_plan(path: Path) -> ReshardPlan:
    """Reads what :func:`save_plan` wrote.

    Raises:
        ReshardError: another version.
    """
    content = json.loads(path.read_text())
    if content["version"] != VERSION:
        raise ReshardError(f"{path} has version {content['version']} of a reshard plan; this program reads {VERSION}")
    routes: list[list[Route]] = [[] for _ in range(content["world_size"])]
    for numbers in content["routes"]:
        route = Route(*numbers)
        routes[route.destination_rank].append(route)
    cargos = (
        Cargo(
            tuple(map(_to_item, cargo["items"])),
            tuple(tuple(map(_to_place, offer)) for offer in cargo["offers"]),
        )
        for cargo in content["cargos"]
    )
    return ReshardPlan(content["world_size"], content["ranks_per_node"], tuple(cargos), tuple(map(tuple, routes)))


def _from_item(item: Item) -> dict[str, Any]:
    return {"tensor": item.hf_name, "start": item.hf.start, "size": item.hf.size, "destination": item.destination}


def _to_item(found: dict[str, Any]) -> Item:
    area = Rectangle(tuple(found["start"]), tuple(found["size"]))
    return Item(found["tensor"], area, _to_place(found["destination"]))


def _to_place(found: list[Any]) -> Place:
    name, start = found
    return Place(name, tuple(start))
