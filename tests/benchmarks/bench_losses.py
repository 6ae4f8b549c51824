"""Advantages and policy loss beside verl 0.9.1, on a batch of 512 groups of 3 with 3,072 response positions.

A fifth of the positions is real. verl works on the padded tensors; here advantages are one number a response and losses
see packed tokens. Both sides are timed in turn, each in its own process, and must agree in what they compute. CPU time
stands beside wall time since it says more on a busy machine.

    .venv/bin/python tests/benchmarks/bench_losses.py
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peers import peer_python

from cfpo_hybrid.algorithms.advantage import compute_advantages
from cfpo_hybrid.algorithms.objective import LossDenominators, PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import PolicyLossInputs, build_policy_loss

GROUPS, GROUP_SIZE, POSITIONS = 512, 3, 3072
REAL_SHARE = 0.2
MICRO_BATCH_TOKENS = 16384


class Peer:
    """verl in a process of its own that works when told to."""

    def __init__(self, python: str, batch: Path, threads: int) -> None:
        script = Path(__file__).with_name("peer_verl_losses.py")
        self.process = subprocess.Popen(
            [python, str(script), str(batch), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, work: str) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError("verl's process ended; its messages are above")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def make_batch(path: Path) -> dict[str, np.ndarray]:
    """A padded batch with lengths from 0.1 to 1.9 times the mean, written to ``path`` for the peer."""
    generator = np.random.default_rng(0)
    rows = GROUPS * GROUP_SIZE
    lengths = (POSITIONS * REAL_SHARE * generator.uniform(0.1, 1.9, rows)).astype(np.int64)
    mask = np.arange(POSITIONS) < lengths[:, None]
    old = -np.abs(generator.standard_normal(mask.shape, dtype=np.float32)) * mask
    batch = {
        "rewards": generator.integers(0, 2, rows).astype(np.float32),
        "group_ids": np.repeat(np.arange(GROUPS), GROUP_SIZE),
        "advantages": generator.standard_normal(rows, dtype=np.float32),
        "mask": mask,
        "old_log_probs": old,
        "log_probs": old + 0.15 * generator.standard_normal(mask.shape, dtype=np.float32) * mask,
    }
    np.savez(path, **batch)
    return batch


def packed_micro_batches(batch: dict[str, np.ndarray], max_tokens: int) -> list[PolicyLossInputs]:
    """The real tokens in row order, cut into micro-batches as the worker packs them."""
    lengths, micro_batches, first = batch["mask"].sum(axis=1), [], 0
    while first < len(lengths):
        ends = np.cumsum(lengths[first:])
        rows = slice(first, first + max(1, int((ends <= max_tokens).sum())))
        mask = batch["mask"][rows]
        sequence_ids = torch.from_numpy(np.nonzero(mask)[0])
        micro_batches.append(
            PolicyLossInputs(
                log_probs=torch.from_numpy(batch["log_probs"][rows][mask]).requires_grad_(),
                old_log_probs=torch.from_numpy(batch["old_log_probs"][rows][mask]),
                advantages=torch.from_numpy(batch["advantages"][rows])[sequence_ids],
                mask=torch.ones(int(mask.sum()), dtype=torch.bool),
                sequence_ids=sequence_ids,
                num_sequences=len(mask),
            )
        )
        first = rows.stop
    return micro_batches


def run_objective(
    objective: PolicyObjective, micro_batches: list[PolicyLossInputs], denominators: LossDenominators
) -> dict[str, float]:
    """Forward, all metrics, and backward to the log-probs of every micro-batch."""
    fresh = [dataclasses.replace(inputs) for inputs in micro_batches]  # drops cached ratios
    for inputs in fresh:
        inputs.log_probs.grad = None
    start, cpu = time.perf_counter(), time.process_time()
    losses = []
    for inputs in fresh:
        output = objective(inputs, denominators)
        output.loss.backward()
        losses.append(output.loss.detach())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    gradients = torch.cat([inputs.log_probs.grad for inputs in fresh if inputs.log_probs.grad is not None])
    check, norm = float(torch.stack(losses).sum()), float(gradients.norm())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "check": check, "gradient": norm}


def run_advantages(batch: dict[str, np.ndarray]) -> dict[str, float]:
    rewards, group_ids = torch.from_numpy(batch["rewards"]), torch.from_numpy(batch["group_ids"])
    start, cpu = time.perf_counter(), time.process_time()
    advantages = compute_advantages("grpo", rewards, group_ids)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "check": float(advantages.abs().sum())}


def measure(sides: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """All sides in turn, ``repeats`` times, after two warm-up rounds."""
    rounds = [{name: side() for name, side in sides.items()} for _ in range(repeats + 2)][2:]
    return {name: [each[name] for each in rounds] for name in sides}


def report(title: str, peer: str, results: dict[str, list[dict[str, float]]], target: float) -> None:
    wall = {name: statistics.median(each["seconds"] for each in runs) for name, runs in results.items()}
    cpu = {name: statistics.median(each["cpu_seconds"] for each in runs) for name, runs in results.items()}
    print(f"\n{title} (target: {target:g} times)")
    print(f"  {'medians':<52}{'wall ms':>10}{'times':>8}{'cpu ms':>10}{'times':>8}")
    for name in results:
        faster, cheaper = wall[peer] / wall[name], cpu[peer] / cpu[name]
        print(f"  {name:<52}{wall[name] * 1e3:>10.3f}{faster:>8.1f}{cpu[name] * 1e3:>10.3f}{cheaper:>8.1f}")


def agree(results: dict[str, list[dict[str, float]]], names: list[str]) -> None:
    """Raises unless the named sides computed the same numbers."""
    for key in ("check", "gradient"):
        values = [results[name][0][key] for name in names if key in results[name][0]]
        if values and max(values) - min(values) > 1e-4 * abs(values[0]):
            raise RuntimeError(f"the sides disagree in {key}: {dict(zip(names, values, strict=True))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--verl-python", default=None, help="interpreter that has verl 0.9.1; by default one is made")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    python = arguments.verl_python or str(peer_python("verl"))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.npz"
        batch = make_batch(path)
        tokens = int(batch["mask"].sum())
        print(
            f"{GROUPS} groups of {GROUP_SIZE}, {POSITIONS} positions, {tokens:,} real tokens; {arguments.threads} threads"
        )
        peer = Peer(python, path, arguments.threads)
        try:
            compare_advantages(peer, batch, arguments.repeats)
            compare_losses(peer, batch, arguments.repeats)
        finally:
            peer.close()


def compare_advantages(peer: Peer, batch: dict[str, np.ndarray], repeats: int) -> None:
    sides = {"verl, vectorised GRPO": lambda: peer.run("advantages"), "ours, grpo": lambda: run_advantages(batch)}
    results = measure(sides, 10 * repeats)
    agree(results, list(sides))
    report("Advantages", "verl, vectorised GRPO", results, target=10)


def compare_losses(peer: Peer, batch: dict[str, np.ndarray], repeats: int) -> None:
    denominators = LossDenominators.of_mask(torch.from_numpy(batch["mask"]))
    whole = packed_micro_batches(batch, max_tokens=batch["mask"].size)
    cut = packed_micro_batches(batch, MICRO_BATCH_TOKENS)
    same = PolicyObjective(loss=build_policy_loss("dual_clip"), aggregation="token_mean")
    paper = PolicyObjective(loss=build_policy_loss("cfpo"), aggregation="seq_mean_token_mean")
    sides = {
        "verl, vanilla (dual clip), token-mean, padded": lambda: peer.run("loss"),
        "ours, dual_clip, token_mean, packed": lambda: run_objective(same, whole, denominators),
        f"ours, the same in {len(cut)} micro-batches": lambda: run_objective(same, cut, denominators),
        "ours, cfpo, seq_mean_token_mean, packed": lambda: run_objective(paper, whole, denominators),
        f"ours, cfpo in {len(cut)} micro-batches": lambda: run_objective(paper, cut, denominators),
    }
    results = measure(sides, repeats)
    agree(results, list(sides)[:3])
    report("Policy loss forward and backward, ours with all its metrics", next(iter(sides)), results, target=4)


if __name__ == "__main__":
    main()
