"""The controller beside verl's: small calls, and a 208 MB batch out to four workers with a score column back.

    .venv/bin/python tests/benchmarks/bench_controller.py

Every system runs on a Ray cluster of its own with four CPU actors, one system after the other, and takes turns with a
bare Ray fan-out to the same actors; small calls are compared by their ratio to that, large ones also by that to a bare
put of the same columns with a bare call that carries them. verl 0.9.1 lives in an environment of its own (see peers.py)
and runs twice: with its default serialisation and with its faster numpy one.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
import torch
from clock import medians, memory_growth
from peers import peer_python

from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, ResourcePool, WorkerContext, dispatch
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup

WORKERS = 4
ROWS, POSITIONS = 1536, 3584
HERE = Path(__file__).resolve().parent


class Scorer:
    def __init__(self, context: WorkerContext) -> None:
        self.context = context

    @dispatch(Dispatch.ALL)
    def ping(self) -> int:
        return self.context.rank

    @dispatch(Dispatch.SPLIT_BY_DP)
    def score_lengths(self, batch: DataProto) -> DataProto:
        return DataProto({"rewards": batch["response_lengths"].float()})

    @dispatch(Dispatch.SPLIT_BY_DP)
    def score_everything(self, batch: DataProto) -> DataProto:
        wide = [batch[name] for name in batch.column_names if batch[name].ndim == 2]
        return DataProto({"rewards": sum((column.float().sum(1) for column in wide), torch.zeros(len(batch)))})


def make_batch(rows: int, positions: int) -> DataProto:
    """Six wide columns with as many bytes as verl's six; prompts are wide only to make the bytes equal."""
    wide = 8 * positions * 3 + (8 + 4 + 4) * (positions - positions // 7)  # verl's bytes in a row
    prompt = (wide - (8 + 4 * 4) * positions) // 8
    names = ("old_log_probs", "ref_log_probs", "rollout_log_probs", "kept_log_mass")
    return DataProto(
        {
            **{name: torch.randn(rows, positions) for name in names},
            "prompts": torch.randint(0, 50000, (rows, prompt)),
            "responses": torch.randint(0, 50000, (rows, positions)),
            "response_lengths": torch.randint(1, positions, (rows,)),
        }
    )


def ignore(_actor: object, _columns: dict[str, np.ndarray]) -> None:
    """What the bare actors do with columns that Ray brought them."""


def measure_ours(arguments: argparse.Namespace) -> dict[str, float]:
    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=3 * 2**30)
    layouts = {"train": ParallelLayout(dp=WORKERS)}
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    pool = ResourcePool(workers_per_node=WORKERS)
    # Run as a script this file is __main__, which workers cannot import: the class comes from the module's own name.
    from bench_controller import Scorer as ImportableScorer

    tiny, large = make_batch(8, 14), make_batch(arguments.rows, POSITIONS)
    with RayWorkerGroup(ImportableScorer, pool=pool, layouts=layouts, role="bench", env=env) as group:
        small = {
            "bare": lambda: ray.get([host.__ray_ready__.remote() for host in group.hosts]),
            "ping": lambda: group.run(ImportableScorer.ping),
            "tiny": lambda: group.run(ImportableScorer.score_lengths, tiny)["rewards"],
        }
        answer = medians(small, arguments.small_rounds)
        arrays = {name: large.column(name) for name in large.column_names}
        copies = {name: values.copy() for name, values in arrays.items()}

        def put_and_call() -> None:
            columns = ray.put(arrays)
            ray.get([host.__ray_call__.remote(ignore, columns) for host in group.hosts])

        big = {
            "copy": lambda: [np.copyto(copies[name], values) for name, values in arrays.items()],
            "put": lambda: ray.put(arrays),
            "put and call": put_and_call,
            "large": lambda: group.run(ImportableScorer.score_lengths, large)["rewards"],
            "everything": lambda: group.run(ImportableScorer.score_everything, large)["rewards"],
        }
        answer |= medians(big, arguments.large_rounds, warm_up=5)  # until all of the store was written once
        size = sum(column.nbytes for column in arrays.values())
        answer |= {"bytes": size, "growth": memory_growth(big["large"])}
    ray.shutdown()
    return answer


def measure_verl(arguments: argparse.Namespace, serialization: str) -> dict[str, float]:
    python = arguments.verl_python or str(peer_python("verl"))
    command = [python, str(HERE / "peer_verl_controller.py"), "--rows", str(arguments.rows)]
    command += ["--positions", str(POSITIONS), "--small-rounds", str(arguments.small_rounds)]
    command += ["--large-rounds", str(arguments.large_rounds)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if serialization == "numpy":
        env["VERL_DATAPROTO_SERIALIZATION_METHOD"] = "numpy"
    output = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("ANSWER "))[7:])


def show(systems: dict[str, dict[str, float]]) -> None:
    print(f"{'':46}" + "".join(f"{name:>16}" for name in systems))
    limit = systems["ours"]["copy"]
    rows: list[tuple[str, Callable[[dict[str, float]], str]]] = [
        ("bare Ray fan-out to the same actors, ms", lambda a: f"{a['bare'] * 1e3:.2f}"),
        ("ping, ms", lambda a: f"{a['ping'] * 1e3:.2f}"),
        ("  ratio to the bare fan-out", lambda a: f"{a['ping'] / a['bare']:.2f}"),
        ("tiny batch out, score column back, ms", lambda a: f"{a['tiny'] * 1e3:.2f}"),
        ("  ratio to the bare fan-out", lambda a: f"{a['tiny'] / a['bare']:.2f}"),
        ("large batch, MB", lambda a: f"{a['bytes'] / 1e6:.0f}"),
        ("a plain copy of its bytes in memory, ms", lambda a: f"{limit * 1e3:.1f}"),
        ("bare ray.put of the same bytes, ms", lambda a: f"{a['put'] * 1e3:.1f}"),
        ("bare ray.put and a bare call with it, ms", lambda a: f"{a['put and call'] * 1e3:.1f}"),
        ("  GB/s", lambda a: f"{a['bytes'] / a['put and call'] / 1e9:.2f}"),
        ("out, score column back, ms", lambda a: f"{a['large'] * 1e3:.1f}"),
        ("  GB/s", lambda a: f"{a['bytes'] / a['large'] / 1e9:.2f}"),
        ("  times the plain copy", lambda a: f"{a['large'] / limit:.2f}"),
        ("  times the bare put and call", lambda a: f"{a['large'] / a['put and call']:.2f}"),
        ("the same, workers read every column, ms", lambda a: f"{a['everything'] * 1e3:.1f}"),
        ("  GB/s", lambda a: f"{a['bytes'] / a['everything'] / 1e9:.2f}"),
        ("driver's memory grows by, batches", lambda a: f"{a['growth'] / a['bytes']:.2f}"),
    ]
    for title, cell in rows:
        print(f"{title:46}" + "".join(f"{cell(answer):>16}" for answer in systems.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--small-rounds", type=int, default=200)
    parser.add_argument("--large-rounds", type=int, default=10)
    parser.add_argument("--skip-verl", action="store_true")
    parser.add_argument("--verl-python", default=None, help="interpreter that has verl 0.9.1; by default one is made")
    arguments = parser.parse_args()
    systems = {"ours": measure_ours(arguments)}
    if not arguments.skip_verl:
        systems |= {f"verl {kind}": measure_verl(arguments, kind) for kind in ("default", "numpy")}
    show(systems)


if __name__ == "__main__":
    main()
