"""The registry of losses: building, knobs, needs, what a loss may return, and how losses are described."""

from dataclasses import dataclass

import pytest
import torch

from cfpo_hybrid import (
    BatchError,
    ConfigError,
    PolicyLossInputs,
    RegistryError,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)


@dataclass(frozen=True)
class KnobsConfig:
    strength: float
    mode: str = "soft"
    steps: int = 1
    hard: bool = False

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength={self.strength} must not be negative")


@register_policy_loss("registry_test_knobs", config=KnobsConfig, needs={"entropy"})
def knobs_loss(inputs, config):
    """Uses the entropy.

    A second paragraph that no listing shows.
    """
    return -inputs.ratio * inputs.advantages - config.strength * inputs.entropy


@register_policy_loss("registry_test_scalar", config=KnobsConfig)
def scalar_loss(inputs, config):
    return (inputs.ratio * inputs.advantages).mean()


def inputs_of(**more):
    return PolicyLossInputs(torch.zeros(3), torch.zeros(3), torch.ones(3), torch.tensor([True, True, False]), **more)


def test_the_public_contract():
    loss = build_policy_loss("cfpo", epsilon=0.1)
    assert (loss.name, loss.config.epsilon, loss.needs) == ("cfpo", 0.1, frozenset())
    # r = 1, A = 1: the loss is -A on counted tokens and exactly 0 elsewhere
    assert loss(inputs_of()).tolist() == [-1.0, -1.0, 0.0]


def test_defaults_of_the_built_in_losses():
    assert build_policy_loss("clip").config.clip_low == 0.2
    assert build_policy_loss("dual_clip").config.dual_clip == 3.0
    assert build_policy_loss("cfpo").config.epsilon == 0.2


def test_unknown_loss_names_the_nearest():
    with pytest.raises(RegistryError, match="did you mean 'cfpo'"):
        build_policy_loss("cpfo")


def test_a_knob_of_another_loss_is_refused_rather_than_inert():
    # verl's trap: clip_ratio is accepted and does nothing.
    with pytest.raises(ConfigError, match=r"^clip_hihg=0.3: 'clip' has no such knob.*did you mean 'clip_high'"):
        build_policy_loss("clip", clip_hihg=0.3)
    with pytest.raises(ConfigError, match="its knobs: epsilon"):
        build_policy_loss("cfpo", clip_ratio=0.3)


def test_all_mistakes_in_knobs_are_found_together():
    with pytest.raises(ConfigError) as error:
        build_policy_loss("registry_test_knobs", mode=3, steps=1.5, hard=1, colour="red")
    assert len(error.value.problems) == 5  # four wrong ones, and strength is missing
    assert any("strength is missing" in problem for problem in error.value.problems)


def test_whole_numbers_serve_as_floats_but_words_and_booleans_do_not():
    assert build_policy_loss("registry_test_knobs", strength=2).config.strength == 2.0
    for wrong in ("2", True):
        with pytest.raises(ConfigError, match="must be of type float"):
            build_policy_loss("registry_test_knobs", strength=wrong)


def test_the_configs_own_check_becomes_a_config_error():
    with pytest.raises(ConfigError, match=r"policy loss 'registry_test_knobs': strength=-1\.0 must not be negative"):
        build_policy_loss("registry_test_knobs", strength=-1.0)


def test_a_needed_input_must_be_there():
    loss = build_policy_loss("registry_test_knobs", strength=1.0)
    with pytest.raises(BatchError, match="needs entropy"):
        loss(inputs_of())
    # -1 - 1 * 0.5
    assert loss(inputs_of(entropy=torch.full((3,), 0.5))).tolist() == [-1.5, -1.5, 0.0]


def test_a_loss_that_aggregates_is_refused():
    with pytest.raises(BatchError, match="Leave sums and means to the framework"):
        build_policy_loss("registry_test_scalar", strength=1.0)(inputs_of())


def test_a_name_is_taken_once():
    with pytest.raises(RegistryError, match="registered twice"):
        register_policy_loss("cfpo", config=KnobsConfig)(knobs_loss)


def test_registration_checks_config_and_needs():
    @dataclass
    class Thawed:
        knob: float = 1.0

    for config in (Thawed, dict):
        with pytest.raises(ConfigError, match="frozen dataclass"):
            register_policy_loss("registry_test_never", config=config)(knobs_loss)
    with pytest.raises(ConfigError, match="rollout_log_probs, ref_log_probs, entropy"):
        register_policy_loss("registry_test_never", config=KnobsConfig, needs=["rewards"])(knobs_loss)


def test_descriptions_hold_knobs_defaults_needs_and_the_source_line():
    described = {each.name: each for each in describe_losses()}
    assert {"cfpo", "clip", "dual_clip"} <= set(described)
    assert described["dual_clip"].knobs[-1] == ("dual_clip", "float", "3.0")
    own = described["registry_test_knobs"]
    assert own.summary == "Uses the entropy."
    assert own.needs == {"entropy"}
    assert own.knobs[0] == ("strength", "float", "required")
    path, _, line = own.source.rpartition(":")
    assert path.endswith("test_policy_loss_registry.py") and int(line) > 1


def test_an_alias_has_its_own_name_defaults_summary_and_checks():
    described = {each.name: each for each in describe_losses()}
    assert described["clip_higher"].knobs == (("clip_low", "float", "0.2"), ("clip_high", "float", "0.28"))
    assert described["spo"].knobs == described["cfpo"].knobs
    for alias, original in (("clip_higher", "clip"), ("spo", "cfpo")):
        assert described[alias].source == described[original].source
        assert described[alias].summary != described[original].summary
    assert build_policy_loss("clip_higher", clip_low=0.1, clip_high=0.3).name == "clip_higher"
    for knobs, message in (
        ({"clip_high": 0.1}, "'clip_higher': clip_high=0.1"),
        ({"low": 1.0}, "'clip_higher' has no"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_policy_loss("clip_higher", **knobs)
