"""The shape of the code base: one direction of imports, short files and functions, a light library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = {"cfpo_hybrid": 0, "workers": 1, "trainer": 2, "examples": 3}
ROOMS = (
    "config",  # the settings of a run, knows no other room
    "run",  # what a run keeps: directory, checkpoints, metrics
    "data",  # problems -> prompts
    "tracking",  # where metrics go
    "terminal",  # what a user reads while a run goes on and at its end
    "check",  # arithmetic and memory of a run, without starting it
    "rules",  # what a configuration must obey
    "session",  # the live parts of a run
    "launch",  # Ray and the worker groups
    "rollout",  # steps 1 to 5 of the way of a batch
    "evaluation",  # validation, and scores of any model
    "step",  # the way of a batch
    "loop",  # step after step
    "drawing",
    "heat_maps",
    "plots",
    "figures",  # pictures of a run
    "train",  # a run from its configuration to its summary
    "export",  # a model through any layout
    "study",  # grids of runs
    "study_report",  # what became of a grid
    "lab",  # losses on a saved rollout
    "commands",  # one file a command
    "cli",
)
"""The rooms of trainer, and modules that stand alone: each imports from itself and from those above it in this list."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "cfpo_hybrid", "workers", "trainer", "examples", "tests", "docs"}

SOURCES = sorted(path for house in ORDER for path in (ROOT / house).rglob("*.py"))


def tracked_files() -> list[str]:
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip("not a git checkout")
    return answer.stdout.split()


def imported_packages(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module.split(".")[0])
    return names


def test_imports_go_one_way():
    wrong = []
    for path in SOURCES:
        house = path.relative_to(ROOT).parts[0]
        for package in imported_packages(ast.parse(path.read_text())):
            if ORDER.get(package, -1) > ORDER[house]:
                wrong.append(f"{path.relative_to(ROOT)} imports {package}")
    assert not wrong


def room_of(module: str) -> int:
    """The place in ``ROOMS`` of a module of trainer, e.g. ``trainer.run.metrics``."""
    inside = module.removeprefix("trainer.")
    fitting = [place for place, room in enumerate(ROOMS) if f"{inside}.".startswith(f"{room}.")]
    assert fitting, f"{module} stands in no room of trainer"
    return max(fitting, key=lambda place: len(ROOMS[place]))


def test_rooms_of_trainer_import_downwards():
    wrong = []
    for path in sorted((ROOT / "trainer").glob("*/*.py")) + sorted((ROOT / "trainer").glob("[!_]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        imports = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        for name in imports:
            if name.startswith("trainer.") and room_of(name) > room_of(module):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_files_and_functions_stay_short():
    long = []
    for path in SOURCES:
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not long


def test_the_training_step_reads_as_a_paragraph():
    tree = ast.parse((ROOT / "trainer" / "step.py").read_text())
    steps = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "train_step"]
    assert len(steps) == 1
    assert steps[0].end_lineno is not None
    assert steps[0].end_lineno - steps[0].lineno + 1 <= 40


def test_top_level_holds_what_the_design_lists():
    tops = {name.split("/")[0] for name in tracked_files()}
    assert {top for top in tops if not top.startswith(".")} <= TOP_LEVEL


def test_the_library_imports_without_the_engines():
    code = (
        "import sys, cfpo_hybrid\n"
        "heavy = {'ray', 'megatron', 'vllm', 'transformers'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
