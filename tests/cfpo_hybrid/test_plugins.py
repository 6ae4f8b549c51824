"""User losses from files and modules: loaded once, found from any folder, failing with a reason."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cfpo_hybrid import ConfigError, PolicyLossInputs, build_policy_loss, describe_losses
from cfpo_hybrid.algorithms.conformance import check_policy_loss
from cfpo_hybrid.plugins import load_plugins, resolve_plugins

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_loss" / "my_loss.py"

PLUGIN = """
from dataclasses import dataclass
from cfpo_hybrid import register_policy_loss

@dataclass(frozen=True)
class Config:
    weight: float = 1.0

@register_policy_loss("{name}", config=Config)
def loss(inputs, config):
    return -config.weight * inputs.ratio * inputs.advantages
"""


def registered():
    return {each.name for each in describe_losses()}


def test_the_example_fits_on_a_screen_and_passes_the_suite():
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    load_plugins([str(EXAMPLE)])
    results = check_policy_loss("soft_gate", sharpness=2.0)
    assert not [result for result in results if not result.passed]


def test_the_example_by_hand():
    load_plugins([str(EXAMPLE)])
    # sharpness 2, r = 1: gate = sigmoid(0) = 0.5, loss = -4/2 * 0.5 * A = -A = -3
    inputs = PolicyLossInputs(torch.zeros(1), torch.zeros(1), torch.tensor([3.0]), torch.tensor([True]))
    assert float(build_policy_loss("soft_gate", sharpness=2)(inputs)) == pytest.approx(-3.0)


def test_a_file_is_loaded_once_however_it_is_spelt(tmp_path, monkeypatch):
    path = tmp_path / "losses.py"
    path.write_text(PLUGIN.format(name="plugin_test_once"))
    monkeypatch.chdir(tmp_path)
    load_plugins(["losses.py", str(path), "./losses.py"])
    load_plugins([str(path)])
    assert "plugin_test_once" in registered()


def test_two_files_of_one_name_are_two_plugins(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "losses.py").write_text(PLUGIN.format(name=f"plugin_test_twin_{folder}"))
    load_plugins([str(tmp_path / "a" / "losses.py"), str(tmp_path / "b" / "losses.py")])
    assert {"plugin_test_twin_a", "plugin_test_twin_b"} <= registered()


def test_a_module_is_loaded_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_plugin_module.py").write_text(PLUGIN.format(name="plugin_test_module"))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["my_plugin_module"])
    assert importlib.util.find_spec("my_plugin_module") is not None
    assert "plugin_test_module" in registered()


def test_paths_are_resolved_for_workers_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert resolve_plugins(["mine.py", "some.module"]) == [str(tmp_path / "mine.py"), "some.module"]


def test_all_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_plugins([str(tmp_path / "one.py"), str(tmp_path / "two.py")])
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1 / 0", "ZeroDivisionError"), ("def broken(", "SyntaxError"), ("import no_such_thing", "no_such_thing")],
)
def test_a_plugin_that_raises_is_reported_with_its_reason(tmp_path, text, reason):
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):  # a failed load is not remembered as loaded
        with pytest.raises(ConfigError, match=reason):
            load_plugins([str(path)])


def test_an_unknown_module_is_reported():
    with pytest.raises(ConfigError, match=r"no\.such\.module cannot be loaded: ModuleNotFoundError"):
        load_plugins(["no.such.module"])
