"""AdamW on fp32 master weights by Megatron-core's (distributed) optimizer, and the learning rate of each step."""

import math
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig

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
        self.megatron: MegatronOptimizer = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=recipe.actor.lr,
                weight_decay=settings.weight_decay,
                adam_beta1=settings.adam_beta1,
                adam_beta2=settings.adam_beta2,
                adam_eps=settings.adam_eps,
                # The norm is computed and reported even when nothing is clipped.
                clip_grad=settings.clip_grad or math.inf,
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
        _, grad_norm, _ = self._checked_step()
        self.steps_taken += 1
        return {"actor/grad_norm": grad_norm, "actor/lr": learning_rate}
