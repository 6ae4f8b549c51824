"""Worker classes for the tests of the controller; Ray workers import them from here."""

import datetime
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch


class EchoWorker:
    def __init__(self, context: WorkerContext, bias: float = 0.0, marker: str = "") -> None:
        self.context, self.bias, self.marker = context, bias, marker

    @dispatch(Dispatch.SPLIT_BY_DP)
    def score(self, batch: DataProto, scale: float) -> DataProto:
        rewards = batch["prompt_lengths"].float() * scale + self.bias
        return DataProto({"rewards": rewards}, {"rank": self.context.rank})

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    def respond(self, batch: DataProto, width: int) -> DataProto:
        """Response t of row i is prompt_length * 100 + t; replicas use different widths."""
        lengths = batch["prompt_lengths"].clamp(max=width)
        responses = batch["prompt_lengths"][:, None] * 100 + torch.arange(width + self.context.ranks["rollout"])
        return DataProto({"responses": responses, "response_lengths": lengths}, {"rank": self.context.rank})

    @dispatch(Dispatch.SPLIT_BY_DP)
    def old_log_probs(self, batch: DataProto) -> DataProto:
        return DataProto({"old_log_probs": -batch["responses"].float()})

    @dispatch(Dispatch.SPLIT_BY_DP)
    def tokens(self, batch: DataProto) -> int:
        return int(batch.num_tokens.sum())

    @dispatch(Dispatch.SPLIT_BY_DP)
    def weigh(self, batch: DataProto) -> DataProto:
        """Twice the advantages, whatever their shape."""
        return DataProto({"advantages": 2 * batch["advantages"]})

    @dispatch(Dispatch.ALL)
    def columns(self, batch: DataProto) -> tuple[str, ...]:
        return batch.column_names

    @dispatch(Dispatch.SPLIT_BY_DP, layout="reward")
    def problems(self, batch: DataProto) -> list[str]:
        return [str(problem) for problem in batch["problem"]]

    @dispatch(Dispatch.SPLIT_BY_DP)
    def loses_a_row(self, batch: DataProto) -> DataProto:
        return batch.rows(range(len(batch) - 1))

    @dispatch(Dispatch.BROADCAST)
    def total(self, batch: DataProto) -> int:
        return int(batch["prompt_lengths"].sum())

    @dispatch(Dispatch.RANK_ZERO, layout="rollout")
    def prompts(self, batch: DataProto) -> DataProto:
        return batch.select("prompts")

    @dispatch(Dispatch.ALL)
    def where(self) -> WorkerContext:
        return self.context

    @dispatch(Dispatch.ALL)
    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    @dispatch(Dispatch.ALL)
    def pid(self) -> int:
        return os.getpid()

    @dispatch(Dispatch.ALL)
    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.context.rank

    @dispatch(Dispatch.BROADCAST, layout="nowhere")
    def misplaced(self) -> None: ...

    def undecorated(self) -> None: ...

    @dispatch(Dispatch.ALL)
    def fail_on(self, rank: int) -> int:
        if self.context.rank == rank:
            raise ValueError(f"rank {rank} was told to fail")
        return self.context.rank

    @dispatch(Dispatch.ALL)
    def fail_here_while_others_wait(self, rank: int) -> None:
        self.fail_on(rank)
        time.sleep(3600)

    def close(self) -> None:
        if self.marker:
            Path(self.marker, str(self.context.rank)).touch()


class FailsToStart:
    def __init__(self, context: WorkerContext, marker: str = "") -> None:
        if context.rank == 1:
            raise RuntimeError("no such model")
        self.marker = marker

    def close(self) -> None:
        if self.marker:
            Path(self.marker, "closed").touch()


class GlooWorker:
    """Joins a gloo world, as a Megatron worker does."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))

    @dispatch(Dispatch.ALL)
    def pid(self) -> int:
        return os.getpid()

    @dispatch(Dispatch.ALL)
    def sum_of_ranks(self) -> int:
        value = torch.tensor(self.context.rank)
        torch.distributed.all_reduce(value)
        return int(value)

    @dispatch(Dispatch.ALL)
    def all_reduce_without(self, rank: int) -> None:
        """Every rank but one waits in a collective; that one is killed."""
        if self.context.rank == rank:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.all_reduce(torch.ones(1))
