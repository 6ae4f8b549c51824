"""Compares policy losses on one frozen rollout: what ``cfpo lab`` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfpo_hybrid.algorithms.policy_loss import PolicyLoss, PolicyLossInputs, build_policy_loss
from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import model_folder
from trainer.config.losses import ALL, choose_losses, loss_label, loss_of_section
from trainer.lab.comparison import Comparison
from trainer.lab.policy_pair import PolicyPair, drifted_pair, engine_pair
from trainer.lab.saved_rollout import SavedRollout, load_rollout
from trainer.lab.token_gradients import TokenReading, compare_tokens, missing_inputs, read_tokens
from trainer.run.checkpoint import saved_model

VANILLA = "policy_gradient"
"""The loss that cosines are taken to: the plain policy gradient, A log pi."""
MODEL_COLUMNS = ("prompts", "prompt_lengths", "responses")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabOptions:
    """What is compared on what.

    Args:
        source: a batch file or a run directory.
        losses: as ``choose_losses`` takes them.
        plugins: that register losses.
        model: a Hugging Face folder, checkpoint or run directory: the policy in training.
        drift: deviation in nats of a made-up policy in training, instead of a model.
        seed: of that drift.
        temperature: of the rollout; by default that of the run that saved it, or 1.
    """

    source: Path
    losses: str = ALL
    plugins: Sequence[str] = ()
    model: str | None = None
    drift: float | None = None
    seed: int = 0
    temperature: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabResult:
    """What was found; lists are in one order, the plain policy gradient first.

    Args:
        rollout: that was looked at.
        pair: the two policies.
        inputs: what the losses saw.
        readings: each loss on the tokens.
        tokens: gradients with respect to the log-probs.
        parameters: gradients with respect to the model's parameters, when there is a model.
        left_out: losses that could not be had, with the reason.
    """

    rollout: SavedRollout
    pair: PolicyPair
    inputs: PolicyLossInputs
    readings: Sequence[TokenReading]
    tokens: Comparison
    parameters: Comparison | None
    left_out: Sequence[str]


def run_lab(options: LabOptions) -> LabResult:
    """Compares the losses; nothing is stepped and nothing written.

    Raises:
        UserError: a batch, model or loss that cannot be used.
    """
    if options.model is not None and options.drift is not None:
        raise ConfigError("--model and --drift both say what the policy in training is; give one of them")
    if options.temperature is not None and options.temperature <= 0:
        raise ConfigError(f"--temperature {options.temperature} must be a positive number")
    rollout = load_rollout(options.source, MODEL_COLUMNS if options.model is not None else ())
    losses = _losses(options, rollout)
    if options.model is not None:
        return _with_model(options, options.model, rollout, losses)
    drift = options.drift
    pair = engine_pair(rollout.batch) if drift is None else drifted_pair(rollout.batch, drift, options.seed)
    return _read(rollout, pair, losses)


def _losses(options: LabOptions, rollout: SavedRollout) -> list[PolicyLoss]:
    """The plain policy gradient, the loss of the run with its knobs when all are wanted, and those chosen."""
    section = rollout.settings.get("policy_loss")
    own = [loss_of_section(section)] if section and options.losses == ALL else []
    chosen = [build_policy_loss(VANILLA), *own, *choose_losses(options.losses, options.plugins)]
    return list({loss_label(loss): loss for loss in chosen}.values())


def _with_model(options: LabOptions, model: str, rollout: SavedRollout, losses: Sequence[PolicyLoss]) -> LabResult:
    from trainer.lab.parameter_gradients import compare_parameters, lone_policy, model_pair  # loads Megatron-core

    folder = model_folder(saved_model(model))
    temperature = options.temperature or float(rollout.setting("rollout", "temperature", 1.0))
    with lone_policy(folder, temperature) as policy:
        result = _read(rollout, model_pair(policy, rollout, folder), losses)
        readable = [reading.loss for reading in result.readings]
        parameters = compare_parameters(policy, rollout.batch, readable, _aggregation(rollout))
    return replace(result, parameters=parameters)


def _read(rollout: SavedRollout, pair: PolicyPair, losses: Sequence[PolicyLoss]) -> LabResult:
    inputs = pair.inputs(rollout)
    missing = {loss_label(loss): missing_inputs(loss, inputs) for loss in losses}
    readable = [loss for loss in losses if not missing[loss_label(loss)]]
    readings = read_tokens(readable, inputs, _aggregation(rollout))
    return LabResult(
        rollout=rollout,
        pair=pair,
        inputs=inputs,
        readings=readings,
        tokens=compare_tokens(readings),
        parameters=None,
        left_out=[f"{label}: needs {', '.join(names)}" for label, names in missing.items() if names],
    )


def _aggregation(rollout: SavedRollout) -> str:
    return str(rollout.setting("algorithm", "loss_aggregation", "seq_mean_token_mean"))
