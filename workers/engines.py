"""Builds the parts of a hybrid worker from its settings."""

from functools import partial

import torch

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.models import ModelShape, load_hf_config, model_folder, model_shape
from cfpo_hybrid.plugins import load_plugins
from cfpo_hybrid.single_controller import WorkerContext
from workers.config import ModelConfig, RolloutConfig
from workers.megatron.log_probs import Truncation
from workers.megatron.policy import MegatronPolicy
from workers.messages import HybridSettings
from workers.process import resolve_dtype
from workers.rollout.engine import RolloutEngine, find_stops
from workers.rollout.vllm_engine import EngineSettings, VllmEngine
from workers.tokenizer import open_tokenizer
from workers.weight_check import differing_weights
from workers.weight_sync import Probe, WeightSync, rounding, weight_receiver


def build_objective(settings: HybridSettings) -> PolicyObjective:
    """What the actor minimises, with the loss of that name, a user's own included."""
    algorithm, chosen, plan = settings.algorithm, settings.policy_loss, settings.plan
    load_plugins(chosen.plugins)
    return PolicyObjective(
        loss=build_policy_loss(chosen.name, **chosen.knobs),
        aggregation=algorithm.loss_aggregation,
        kl_coef=algorithm.kl_coef if plan.kl_in_loss else 0.0,
        kl_estimator=algorithm.kl_estimator,
        entropy_coef=algorithm.entropy_coef,
        correction=algorithm.rollout_correction,
    )


def build_policy(settings: HybridSettings, context: WorkerContext, device: torch.device) -> MegatronPolicy:
    """The Megatron rank with the weights of ``model.path``, and their frozen copy where the plan has a reference."""
    rollout = settings.rollout
    policy = MegatronPolicy(
        shape_of(settings.model),
        settings.actor,
        settings.train_layout,
        rank=context.rank,
        device=device,
        seed=settings.seed,
        total_optimizer_steps=settings.total_optimizer_steps,
        temperature=rollout.temperature,
        weight_lag=settings.plan.weight_lag,
        truncation=Truncation(top_p=rollout.top_p, top_k=rollout.top_k) if rollout.truncates else None,
    )
    policy.start_from(model_folder(settings.model.path, settings.model.revision))
    if settings.plan.reference:
        policy.build_reference()
    return policy


def build_generation(settings: HybridSettings, context: WorkerContext, device: torch.device) -> RolloutEngine:
    """The vLLM rank of a hybrid worker; its weights come by resharding."""
    return build_engine(
        settings.model,
        settings.rollout,
        context,
        dtype=resolve_dtype(settings.rollout.dtype, settings.actor.dtype, device=device),
        device=device,
        max_model_len=settings.max_prompt_length + settings.max_response_length,
    )


def build_weight_sync(policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings) -> WeightSync:
    """The way from one engine to the other."""
    rollout = settings.rollout
    return WeightSync(
        policy,
        engine,
        receive=weight_receiver(policy, engine, settings),
        check=partial(differing_weights, policy, engine, settings),
        # vLLM always samples one token more than it scores.
        probe=Probe(policy.shape.vocab_size, settings.max_prompt_length + settings.max_response_length - 1),
        tolerance=rollout.probe_tolerance or rounding(policy.recipe.dtype, engine.dtype),
        stops=rollout.probe_action == "stop",
    )


def build_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    context: WorkerContext,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
) -> RolloutEngine:
    """A vLLM rank with weights yet to be written; collective over the world.

    Args:
        model: whose config.json vLLM reads.
        rollout: engine knobs.
        context: the rank's place.
        dtype: of weights and activations.
        device: of the rank.
        max_model_len: longest prompt + response, in tokens.
    """
    folder = model_folder(model.path, model.revision)
    stops = find_stops(folder, rollout.stop)
    settings = EngineSettings(
        folder=str(folder),
        shape=shape_of(model),
        rank=context.ranks["rollout"],
        dtype=dtype,
        max_model_len=max_model_len,
        stops=stops,
        job=context.job_id,
        device=device,
        tokenizer=open_tokenizer(model) if stops.texts else None,
    )
    return VllmEngine(rollout, settings)


def shape_of(model: ModelConfig) -> ModelShape:
    """The shape of the model that a configuration names."""
    return model_shape(load_hf_config(model.path, model.revision))
