"""Ray for a run: a small cluster of its own on this machine, or an existing one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError

from cfpo_hybrid.errors import ConfigError
from trainer.config import TrainerConfig

OBJECT_STORE_BYTES = 2 * 1024**3
"""Shared memory of a run's own Ray; batches of a run on one machine are far smaller."""

TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
"""The module of Ray 2.60 that turns token authentication on."""


@contextmanager
def ray_cluster(trainer: TrainerConfig, device: str, *, side_by_side: int = 1) -> Iterator[None]:
    """Connects the driver to Ray and disconnects it at the end; a Ray of its own ends with the run.

    A driver that is connected already stays so: several runs of one process share its Ray.

    Args:
        trainer: of the run.
        device: ``"cpu"`` or ``"cuda"``.
        side_by_side: runs of this size that a Ray of its own must hold at one time.

    Raises:
        ConfigError: no cluster answers at ``trainer.ray_address``.
    """
    if ray.is_initialized():
        yield
        return
    # Ray's start-up message and its usage question are noise on a user's terminal.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray guards a cluster that it starts with a token of its own (in ~/.ray/auth_token) and tells so in a warning. Saying
    # RAY_AUTH_MODE=token ourselves would silence it, but half of Ray has read that variable by now: what we start would
    # ask for a token and the driver would not bring it.
    logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
    # Ray would run workers at a low priority, behind anything else on a shared machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    options: dict = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if trainer.ray_address is None:
        # Ray counts logical CPUs only to place actors: a laptop with two cores may run four tiny workers.
        cpus = max(os.cpu_count() or 1, trainer.world_size * trainer.cpus_per_worker * side_by_side)
        # Without an address Ray would join any Ray that runs on this machine.
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
        if device == "cpu":
            options["num_gpus"] = 0
    else:
        options["address"] = trainer.ray_address
    try:
        ray.init(**options)
    except (ConnectionError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"trainer.ray_address='{trainer.ray_address}': no Ray cluster lets this process in ({reason}); start one with "
            "`ray start --head`, or leave the key out to run on this machine; a cluster with a token answers those alone "
            "who bring it: export RAY_AUTH_MODE=token here, and the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
