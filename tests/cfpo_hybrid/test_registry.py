"""Registries: names taken once and answered with the nearest, functions with knobs, aliases."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import pytest

from cfpo_hybrid.errors import BatchError, ConfigError, RegistryError
from cfpo_hybrid.registry import REQUIRED, FunctionEntry, FunctionRegistry, Registry, check_positive, did_you_mean


@dataclass(frozen=True)
class ShoutConfig:
    volume: float
    words: list = field(default_factory=lambda: ["hey"])

    def __post_init__(self) -> None:
        check_positive(volume=self.volume)


@dataclass(frozen=True)
class WhisperConfig(ShoutConfig):
    volume: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GreetingEntry(FunctionEntry):
    KIND: ClassVar[str] = "greeting"
    OPTIONAL_INPUTS: ClassVar[tuple[str, ...]] = ("name", "title")

    is_polite: bool = False


def greetings():
    registry = FunctionRegistry(GreetingEntry)

    @registry.registering("shout", config=ShoutConfig, needs=frozenset({"name"}), is_polite=True)
    def shout(inputs, config):
        """Says it loudly.

        And more.
        """

    registry.alias("whisper", of="shout", config=WhisperConfig, summary="Says it softly.")
    return registry


def test_names_are_taken_once_and_the_nearest_is_named():
    registry = Registry("model family")
    registry.register("qwen", 1)
    registry.register("llama", 2)
    assert (registry.names(), list(registry)) == (("llama", "qwen"), ["llama", "qwen"])
    assert registry.get("qwen") == 1 and "qwen" in registry and "qwn" not in registry
    with pytest.raises(RegistryError, match="model family 'qwen' is registered twice"):
        registry.register("qwen", 3)
    with pytest.raises(RegistryError, match="unknown model family 'qwn'; known: llama, qwen; did you mean 'qwen'"):
        registry.get("qwn")
    assert did_you_mean("x", ["qwen"]) == ""


def test_an_entry_tells_its_knobs_summary_and_source():
    entry = greetings().get("shout")
    assert (str(entry), entry.summary, entry.is_polite) == ("greeting 'shout'", "Says it loudly.", True)
    assert [knob[::2] for knob in entry.knobs] == [("volume", REQUIRED), ("words", "['hey']")]
    assert entry.required_knobs == ("volume",)
    path, _, line = entry.source.rpartition(":")
    assert path.endswith("test_registry.py") and int(line) > 1


def test_an_alias_keeps_what_it_does_not_change():
    registry = greetings()
    shout, whisper = registry.entries()
    assert (whisper.function, whisper.needs, whisper.is_polite) == (shout.function, shout.needs, True)
    assert (whisper.name, whisper.summary, whisper.configure({}).volume) == ("whisper", "Says it softly.", 0.5)
    with pytest.raises(RegistryError, match="registered twice"):
        registry.alias("shout", of="whisper", summary="")
    with pytest.raises(RegistryError, match="unknown greeting 'wisper'"):
        registry.alias("murmur", of="wisper", summary="")


def test_mistakes_in_knobs_are_told_at_once_and_each_begins_with_its_knob():
    entry = greetings().get("shout")
    assert entry.problems({"volume": 2}) == []
    assert entry.problems({"volum": 2, "words": ["a"]}) == [
        ("volum", "volum=2: 'shout' has no such knob; its knobs: volume, words; did you mean 'volume'?"),
        ("volume", "volume is missing: 'shout' has no default for it; give it a value"),
    ]
    assert entry.problems({"volume": "2"}) == [("volume", "volume='2' must be of type float")]
    assert entry.problems({"volume": -1.0}) == [("", "'shout': volume=-1.0 must be a positive number")]
    with pytest.raises(ConfigError, match=r"^greeting 'shout': volume=-1\.0 must be a positive number"):
        entry.configure({"volume": -1.0})


def test_needed_inputs_must_be_there():
    entry = greetings().get("shout")
    entry.check_inputs(SimpleNamespace(name="Ada", title=None))
    with pytest.raises(BatchError, match="greeting 'shout' needs name, which the inputs lack"):
        entry.check_inputs(SimpleNamespace(name=None, title=None))
    with pytest.raises(ConfigError, match="greeting 'ask' needs 'age'; it can ask for name, title"):
        FunctionRegistry(GreetingEntry).registering("ask", config=ShoutConfig, needs=frozenset({"age"}))(print)


@pytest.mark.parametrize("number", [0.0, -1.0, float("inf"), float("nan")])
def test_positive_numbers_are_positive_and_finite(number):
    with pytest.raises(ValueError, match=f"volume={number} must be a positive number"):
        check_positive(loudness=1.0, volume=number)
