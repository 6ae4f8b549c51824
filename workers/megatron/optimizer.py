"""AdamW on fp32 master weights by Megatron-core's (distributed) optimizer, its learning rate and what it steps."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, NumericsError
from workers.config import OptimizerConfig
from workers.megatron.build import ModelRecipe, named_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """Learning rate by optimizer step: linear warm-up, then constant or a half cosine.

    Pure, so a resumed run needs only the number of steps taken.

    Example: peak 1, 2 of 10 steps of warm-up, cosine to 0: 0.5, 1, 1, 0.96, ...

    Raises:
        ConfigError: an unknown schedule.
    """

    peak: float
    config: OptimizerConfig
    total_steps: int

    def __post_init__(self) -> None:
        if self.config.schedule not in ("constant", "cosine"):
            raise ConfigError(f"actor.optimizer.schedule={self.config.schedule!r} is unknown; use constant or cosine")

    def at(self, step: int) -> float:
        """Of the optimizer step with this number, from 0. The first step of a warm-up is not wasted on 0."""
        warmup = self.config.warmup_steps(self.total_steps)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        if self.config.schedule == "constant":
            return self.peak
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        floor = self.config.min_lr_ratio
        return self.peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW: the running means of gradients and of their squares, in fp32."""


@dataclass(frozen=True, slots=True)
class OptimizerShard:
    """A stretch of a flattened local parameter that this rank's AdamW steps.

    Args:
        name: of the local parameter.
        first: index of its first element in the flattened parameter.
        master: the elements that AdamW steps, in fp32: a copy, or the model's own memory.
        adamw: the optimizer that holds their state.
        has_master: the master is a copy.
        peers: ranks that step the other stretches of the same parameter; none without the distributed optimizer.
    """

    name: str
    first: int
    master: Tensor
    adamw: torch.optim.Optimizer
    has_master: bool
    peers: tuple[int, ...] = ()

    @property
    def moments(self) -> dict[str, Tensor]:
        """Live; none before the first step."""
        state = self.adamw.state[self.master]
        return {name: state[name] for name in MOMENTS if state}

    def restore(self, moments: Mapping[str, Tensor], steps_taken: int) -> None:
        """Takes over AdamW's state after so many steps, which is none before the first."""
        # AdamW keeps its step counter on the host.
        self.adamw.state[self.master] = {"step": torch.tensor(float(steps_taken)), **moments} if steps_taken else {}


class PolicyOptimizer:
    """Steps, and counts steps.

    Args:
        chunks: the wrapped model; its gradient buffers are read.
        recipe: what the model was built from.
        total_steps: length of the learning-rate schedule.
    """

    def __init__(self, chunks: Sequence[DistributedDataParallel], recipe: ModelRecipe, total_steps: int) -> None:
        settings = recipe.actor.optimizer
        self.chunks = chunks
        self.learning_rate = LearningRate(peak=recipe.actor.lr, config=settings, total_steps=total_steps)
        self.steps_taken = 0
        self.clip_grad = settings.clip_grad
        self.has_masters = recipe.dtype != torch.float32
        self.megatron: MegatronOptimizer = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=recipe.actor.lr,
                weight_decay=settings.weight_decay,
                adam_beta1=settings.adam_beta1,
                adam_beta2=settings.adam_beta2,
                adam_eps=settings.adam_eps,
                clip_grad=settings.clip_grad,
                bf16=recipe.dtype == torch.bfloat16,
                params_dtype=recipe.dtype,
                use_distributed_optimizer=recipe.actor.megatron.distributed_optimizer,
            ),
            [*chunks],
            use_gloo_process_groups=False,
        )
        chained: Any = self.megatron
        self.parts: list[Any] = chained.chained_optimizers  # of dense weights, and of experts
        self.cosine = GradientCosine(self.parts, recipe.device) if settings.grad_cosine else None

    def zero_grad(self) -> None:
        """Clears the gradient buffers before the first micro-batch."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        with _quiet():
            self.megatron.zero_grad()

    def step(self) -> dict[str, float]:
        """Clips and steps once; the gradients must be final.

        Returns:
            ``actor/grad_norm`` before clipping, ``actor/lr`` of this step, and ``actor/grad_cosine`` where it is measured.

        Raises:
            NumericsError: the gradient norm is not finite; no weight has changed.
        """
        learning_rate = self.learning_rate.at(self.steps_taken)
        for group in self.megatron.param_groups:
            group["lr"] = learning_rate
        with _quiet():
            self.megatron.prepare_grads()
            grad_norm = float(self.megatron.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise NumericsError(
                f"the gradient norm of optimizer step {self.steps_taken} is {grad_norm}; the weights are those before "
                "it. Look at actor/log_ratio_max and actor/loss of earlier steps; a lower actor.lr or more gradient "
                "clipping (actor.optimizer.clip_grad) usually helps"
            )
        cosine = self.cosine.measure(grad_norm) if self.cosine else {}
        if self.clip_grad:
            parameters: Any = [parameter for group in self.megatron.param_groups for parameter in group["params"]]
            clip_grad_by_total_norm_fp32(parameters, self.clip_grad, grad_norm)
        self.megatron.step_with_ready_grads()
        self.steps_taken += 1
        return {"actor/grad_norm": grad_norm, "actor/lr": learning_rate} | cosine

    def shards(self) -> list[OptimizerShard]:
        """What this rank steps: whole parameters, or with the distributed optimizer its stretches of them."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters(self.chunks)}
        return [shard for part in self.parts for shard in _shards(part, names, self.has_masters)]

    def state_tensors(self) -> list[Tensor]:
        """The memory that only an optimizer step needs: AdamW's state, masters that are copies, a kept gradient."""
        tensors = list(self.cosine.kept) if self.cosine else []
        for shard in self.shards():
            tensors += [*shard.adamw.state[shard.master].values(), *([shard.master.data] if shard.has_master else [])]
        return tensors

    def weights_changed(self) -> None:
        """Takes over model weights that were written from outside."""
        self.megatron.reload_model_params()


class GradientCosine:
    """The cosine between the gradients of two optimizer steps in a row: do they pull the same way?

    Keeps a copy of the gradient before, fp32 and of the size of the gradients that this rank steps: 4 bytes a parameter,
    with the distributed optimizer divided by dp. Elements are those that Megatron-core counts in the gradient norm, each
    once over tp, pp, dp and ep, and sums run over the same ranks, so the cosine is that of whole gradients under any
    layout.

    Args:
        parts: Megatron-core's optimizers, whose gradients these are.
        device: where they are.
    """

    def __init__(self, parts: Sequence[Any], device: torch.device) -> None:
        self._parts, self._device = parts, device
        self._norm: float | None = None
        self.kept: list[Tensor] = []

    def measure(self, norm: float) -> dict[str, float]:
        """``actor/grad_cosine``, and keeps the gradient; nothing at the first step of a process or beside a zero gradient.

        Collective over the world. Gradients must be final and not yet clipped.

        Args:
            norm: of the gradient over all ranks.
        """
        gradients = [part.get_main_grads_for_grad_norm() for part in self._parts]
        flat = [gradient.reshape(-1) for part in gradients for gradient in part]
        previous, self._norm = self._norm, norm
        if previous is None:
            self.kept = [gradient.to(torch.float32, copy=True) for gradient in flat]
            return {}
        product = self._product_with_kept(gradients)
        for kept, gradient in zip(self.kept, flat, strict=True):
            kept.copy_(gradient)
        return {"actor/grad_cosine": product / (previous * norm)} if previous * norm > 0 else {}

    def _product_with_kept(self, gradients: Sequence[Sequence[Tensor]]) -> float:
        """The dot product over all ranks; experts are reduced over ranks of their own."""
        kept, products = iter(self.kept), []
        for part, own in zip(self._parts, gradients, strict=True):
            product = torch.zeros((), dtype=torch.float64, device=self._device)
            for gradient in own:
                product += torch.dot(gradient.reshape(-1).float(), next(kept))
            dist.all_reduce(product, group=part.get_grad_stats_parallel_group())
            products.append(product)
        return float(torch.stack(products).sum())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that the distributed optimizer's fp32 masters, views of the weights, are no leaves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


def _shards(optimizer: Any, names: Mapping[Tensor, str], has_masters: bool) -> Iterator[OptimizerShard]:
    """The shards of one Megatron-core optimizer; each kind of it keeps its masters elsewhere."""
    adamw = optimizer.optimizer
    if isinstance(optimizer, DistributedOptimizer):
        peers = tuple(dist.get_process_group_ranks(optimizer.data_parallel_group))
        for parameter, (group, order) in optimizer.model_param_group_index_map.items():
            first = optimizer._get_model_param_range_map(parameter)["param"].start
            master = adamw.param_groups[group]["params"][order]
            yield OptimizerShard(names[parameter], first, master, adamw, has_masters, peers)
        return
    stepped = {id(master) for group in adamw.param_groups for master in group["params"]}
    for parameter, name in names.items():
        master = parameter.main_param if has_masters else parameter  # pyright: ignore[reportAttributeAccessIssue]
        if id(master) in stepped:
            yield OptimizerShard(name, 0, master, adamw, has_masters)
