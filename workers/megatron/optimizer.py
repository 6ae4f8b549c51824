"""AdamW on fp32 master weights by Megatron-core's (distributed) optimizer, and the learning rate of each step."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, NumericsError
from workers.config import OptimizerConfig
from workers.megatron.build import ModelRecipe


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
        warmup = math.ceil(self.config.warmup_ratio * self.total_steps)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        if self.config.schedule == "constant":
            return self.peak
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        floor = self.config.min_lr_ratio
        return self.peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that the distributed optimizer's fp32 masters, views of the weights, are no leaves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


class PolicyOptimizer:
    """Steps, and counts steps.

    Args:
        model: the wrapped model; its gradient buffers are read.
        recipe: what the model was built from.
        total_steps: length of the learning-rate schedule.
    """

    def __init__(self, model: DistributedDataParallel, recipe: ModelRecipe, total_steps: int) -> None:
        settings = recipe.actor.optimizer
        self.model = model
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
            [model],
            use_gloo_process_groups=False,
        )

    def zero_grad(self) -> None:
        """Clears the gradient buffers before the first micro-batch."""
        self.model.zero_grad_buffer()
        with _quiet():
            self.megatron.zero_grad()

    def step(self) -> dict[str, float]:
        """Clips and steps once; the gradients must be final.

        Returns:
            ``actor/grad_norm`` before clipping and ``actor/lr`` of this step.

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
        if self.clip_grad:
            parameters: Any = [parameter for group in self.megatron.param_groups for parameter in group["params"]]
            clip_grad_by_total_norm_fp32(parameters, self.clip_grad, grad_norm)
        self.megatron.step_with_ready_grads()
        self.steps_taken += 1
        return {"actor/grad_norm": grad_norm, "actor/lr": learning_rate}

    def masters(self) -> list[Tensor]:
        """The tensors that AdamW steps: fp32 copies or shards, or the model's own parameters."""
        return [parameter for group in self.megatron.param_groups for parameter in group["params"]]

    def state_tensors(self) -> dict[str, Tensor]:
        """AdamW's state of this rank under stable names; with bf16 weights also the fp32 masters."""
        tensors = {}
        for number, master in enumerate(self.masters()):
            for name, value in self._adamw.state[master].items():
                tensors[f"{number}.{name}"] = value
            if self.has_masters:
                tensors[f"{number}.master"] = master.data
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_tensors`, bit by bit; the model's weights must be loaded already."""
        for number, master in enumerate(self.masters()):
            found = {name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{number}.")}
            if self.has_masters:
                master.data.copy_(found.pop("master"))
            # AdamW keeps its step counter on the host.
            state = {name: value if name == "step" else value.to(master.device) for name, value in found.items()}
            if state:
                self._adamw.state[master] = state

    def weights_changed(self) -> None:
        """Takes over model weights that were written from outside."""
        self.megatron.reload_model_params()

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        return self.megatron.optimizer
