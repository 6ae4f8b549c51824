"""Compares policy losses on one frozen rollout: what ``cfpo lab`` does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import PolicyLoss, PolicyLossInputs, build_policy_loss
from cfpo_hybrid.errors import ConfigError, DataError
from cfpo_hybrid.models import model_folder
from trainer.config.losses import ALL, choose_losses, distinct, loss_label, loss_of_section
from trainer.lab.gradients import Comparison, TokenReading, missing_inputs, read_tokens
from trainer.lab.saved_rollout import SavedRollout, load_rollout
from trainer.run.checkpoint import saved_model
from workers.single_engine import lone_policy

VANILLA = "policy_gradient"
"""The loss that cosines are taken to: the plain policy gradient, A log pi."""
MODEL_COLUMNS = ("prompts", "prompt_lengths", "responses")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabResult:
    """What was found; lists are in one order, the plain policy gradient first.

    Args:
        rollout: that was looked at.
        policies: which two the losses saw, for people.
        inputs: what the losses saw.
        readings: each loss on the tokens.
        tokens: gradients with respect to the log-probs.
        parameters: gradients with respect to the model's parameters, when there is a model.
        left_out: losses that could not be had, with the reason.
    """

    rollout: SavedRollout
    policies: str
    inputs: PolicyLossInputs
    readings: Sequence[TokenReading]
    tokens: Comparison
    parameters: Comparison | None
    left_out: Sequence[str]


def run_lab(
    source: Path,
    losses: str = ALL,
    *,
    plugins: Sequence[str] = (),
    model: str | None = None,
    drift: float | None = None,
    seed: int = 0,
    temperature: float | None = None,
) -> LabResult:
    """Compares losses on a rollout; nothing is stepped and nothing written.

    Args:
        source: a batch file or a run directory.
        losses: as ``choose_losses`` takes them; all bring the loss of the run with its knobs.
        plugins: that register losses.
        model: a Hugging Face folder, checkpoint or run directory: the policy in training.
        drift: deviation in nats of a made-up policy in training, instead of a model.
        seed: of that drift.
        temperature: of the rollout; by default that of the run that saved it, or 1.

    Raises:
        UserError: a batch, model or loss that cannot be used.
    """
    if model is not None and drift is not None:
        raise ConfigError("--model and --drift both say what the policy in training is; give one of them")
    if temperature is not None and temperature <= 0:
        raise ConfigError(f"--temperature {temperature} must be a positive number")
    rollout = load_rollout(source, MODEL_COLUMNS if model is not None else ())
    section = rollout.settings.get("policy_loss")
    own = [loss_of_section(section)] if section and losses == ALL else []
    compared = distinct([build_policy_loss(VANILLA), *own, *choose_losses(losses, plugins)])
    if model is not None:
        return _with_model(model, temperature, rollout, compared)
    if drift is not None:
        return _with_drift(drift, seed, rollout, compared)
    return _of_engines(rollout, compared)


def _of_engines(rollout: SavedRollout, losses: Sequence[PolicyLoss]) -> LabResult:
    """The training engine's log-probs against the rollout engine's: the mismatch alone, no drift."""
    sampled = rollout.column("rollout_log_probs")
    if sampled is None:
        raise ConfigError(
            "the batch has no rollout_log_probs, so it holds one policy only; give --model, a policy to compare it with, "
            "or --drift, e.g. --drift 0.1, for a made-up one"
        )
    inputs = rollout.inputs(rollout.batch["old_log_probs"], sampled, rollout.column("entropy"))
    policies = "the training engine (old_log_probs) against the rollout engine (rollout_log_probs)"
    return _read(rollout, inputs, policies, losses)


def _with_drift(sigma: float, seed: int, rollout: SavedRollout, losses: Sequence[PolicyLoss]) -> LabResult:
    """A made-up policy: log pi_theta = log pi_old + a normal draw of deviation sigma and mean -sigma^2 / 2.

    With that mean the expected ratio is 1, as it is for two real policies.
    """
    if not 0 < sigma < math.inf:
        raise ConfigError(f"--drift {sigma}: it must be a positive number of nats, e.g. 0.1")
    old = rollout.batch["old_log_probs"].double()
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = rollout.inputs(old + sigma * noise - sigma**2 / 2, old, rollout.column("entropy"))
    policies = f"synthetic: old_log_probs with normal noise of {sigma:g} nats (seed {seed}) against old_log_probs"
    return _read(rollout, inputs, policies, losses)


def _with_model(
    model: str, temperature: float | None, rollout: SavedRollout, losses: Sequence[PolicyLoss]
) -> LabResult:
    """A model against the policy that sampled, and also the gradients of its parameters, all held in fp32 at one time."""
    folder, batch = model_folder(saved_model(model)), rollout.batch
    temperature = temperature or float(rollout.setting("rollout", "temperature", 1.0))
    with lone_policy(folder, temperature) as policy:
        largest = max(int(batch["prompts"].max()), int(batch["responses"].max()))
        if largest >= policy.shape.vocab_size:
            raise DataError(
                f"{rollout.path} holds token {largest} and the model in {folder} knows {policy.shape.vocab_size} tokens; "
                "give the model that sampled it, or one trained from it"
            )
        found = policy.log_probs(batch)
        inputs = rollout.inputs(found["old_log_probs"], batch["old_log_probs"], found["entropy"])
        policies = f"the model in {folder} against the policy that sampled (old_log_probs)"
        result = _read(rollout, inputs, policies, losses)
        objectives = [
            PolicyObjective(loss=reading.loss, aggregation=rollout.aggregation) for reading in result.readings
        ]
        gradients = [policy.gradient(batch, objective) for objective in objectives]
    return replace(result, parameters=Comparison.of(gradients))


def _read(rollout: SavedRollout, inputs: PolicyLossInputs, policies: str, losses: Sequence[PolicyLoss]) -> LabResult:
    missing = {loss_label(loss): missing_inputs(loss, inputs) for loss in losses}
    readable = [loss for loss in losses if not missing[loss_label(loss)]]
    readings = [read_tokens(loss, inputs, rollout.aggregation) for loss in readable]
    return LabResult(
        rollout=rollout,
        policies=policies,
        inputs=inputs,
        readings=readings,
        tokens=Comparison.of([reading.gradient for reading in readings]),
        parameters=None,
        left_out=[f"{label}: needs {', '.join(names)}" for label, names in missing.items() if names],
    )
