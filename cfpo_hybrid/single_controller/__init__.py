"""One driver, groups of workers: dispatch modes, worker groups, resource pools and their backends.

``ray_group`` holds the Ray backend; it is imported by name, so that this package needs no Ray.
"""

from cfpo_hybrid.single_controller.dispatch import Dispatch, WorkerMethod, dispatch
from cfpo_hybrid.single_controller.group import Future, InProcessWorkerGroup, WorkerGroup
from cfpo_hybrid.single_controller.resources import ResourcePool, WorkerContext

__all__ = [
    "Dispatch",
    "Future",
    "InProcessWorkerGroup",
    "ResourcePool",
    "WorkerContext",
    "WorkerGroup",
    "WorkerMethod",
    "dispatch",
]
