"""verl's RayWorkerGroup on the work of bench_controller.py; run by it with the interpreter of verl's own environment.

Prints one line "ANSWER {json}": median seconds by name, and the growth of the driver's memory.
"""

import argparse
import json
import os

import ray
import torch
from clock import medians, memory_growth
from verl import DataProto
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

WORKERS = 4


class Scorer(Worker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def ping(self) -> int:
        return self.rank

    def bare(self) -> int:
        return self.rank

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def score_lengths(self, batch: DataProto) -> DataProto:
        return DataProto.from_dict({"rewards": batch.batch["response_lengths"].float()})

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def score_everything(self, batch: DataProto) -> DataProto:
        return DataProto.from_dict({"rewards": sum(column.float().sum(-1) for column in batch.batch.values())})


def ignore(_actor: object, _columns: object) -> None:
    """What the bare actors do with columns that Ray brought them."""


def make_batch(rows: int, positions: int) -> DataProto:
    """The six columns that verl's trainer sends to the actor, and the lengths."""
    prompt, response = positions // 7, positions - positions // 7
    ids = torch.randint(0, 50000, (rows, positions))
    return DataProto.from_dict(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(positions).repeat(rows, 1),
            "responses": ids[:, prompt:].clone(),
            "old_log_probs": torch.randn(rows, response),
            "advantages": torch.randn(rows, response),
            "response_lengths": torch.randint(1, response, (rows,)),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--positions", type=int, required=True)
    parser.add_argument("--small-rounds", type=int, required=True)
    parser.add_argument("--large-rounds", type=int, required=True)
    arguments = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name.startswith(("VERL_", "OMP_"))}
    env["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=3 * 2**30,
        runtime_env={"env_vars": env},
    )
    pool = RayResourcePool([WORKERS], use_gpu=False, max_colocate_count=1)
    group = RayWorkerGroup(pool, RayClassWithInitArgs(ray.remote(Scorer)), device_name="cpu")

    tiny, large = make_batch(8, 14), make_batch(arguments.rows, arguments.positions)
    size = sum(column.nbytes for column in large.batch.values())
    small = {
        "bare": lambda: ray.get([actor.bare.remote() for actor in group.workers]),
        "ping": group.ping,
        "tiny": lambda: group.score_lengths(tiny).batch["rewards"],
    }
    answer = medians(small, arguments.small_rounds)
    arrays = {name: values.numpy() for name, values in large.batch.items()}

    def put_and_call() -> None:
        columns = ray.put(arrays)
        ray.get([actor.__ray_call__.remote(ignore, columns) for actor in group.workers])

    big = {
        "put": lambda: ray.put(arrays),
        "put and call": put_and_call,
        "large": lambda: group.score_lengths(large).batch["rewards"],
        "everything": lambda: group.score_everything(large).batch["rewards"],
    }
    answer |= medians(big, arguments.large_rounds, warm_up=5)  # until all of the store was written once
    answer |= {"bytes": size, "growth": memory_growth(big["large"])}
    print("ANSWER " + json.dumps(answer), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
