"""The public face: what `import cfpo_hybrid` offers, and how little it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

import cfpo_hybrid

ROOT = Path(__file__).parents[2]


def test_all_names_exist_and_are_sorted():
    assert list(cfpo_hybrid.__all__) == sorted(cfpo_hybrid.__all__)
    assert set(cfpo_hybrid.__all__) <= set(dir(cfpo_hybrid))
    for name in cfpo_hybrid.__all__:
        assert getattr(cfpo_hybrid, name).__name__ == name
    with pytest.raises(AttributeError, match="'cfpo_hybrid' has no attribute 'nothing'"):
        cfpo_hybrid.nothing  # noqa: B018


def test_the_designs_import_line():
    from cfpo_hybrid import DataProto, PolicyLossInputs, build_policy_loss, register_policy_loss  # noqa: F401


@pytest.mark.parametrize(
    "module",
    ["cfpo_hybrid", "cfpo_hybrid.errors", "cfpo_hybrid.registry", "cfpo_hybrid.plugins", "cfpo_hybrid.parallel_layout"],
)
def test_what_needs_no_tensors_loads_none(module):
    code = f"import sys, {module}; print({{'torch', 'numpy', 'jaxtyping'}} & {{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"
