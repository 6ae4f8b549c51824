"""Every study of examples/studies passes the check, and its runs are those that its first lines promise."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny_recipe import ROW, write_model

from trainer.study.plan import PlannedRun, plan_study
from trainer.study.study_file import read_study_file

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
NUM_RUNS = {"stability": 45, "stability_short": 9, "batch_ratio": 24, "epsilon": 9, "grpo_cfpo": 6, "advantages": 6}


def plan(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """The runs of a study on a world that is not trained on."""
    monkeypatch.chdir(STUDIES.parents[1])
    write_model(folder / "model")
    data = folder / "data.jsonl"
    data.write_text((json.dumps(ROW) + "\n") * 32)
    words = [f"model.path={folder / 'model'}", f"data.train_files=[{data}]", f"data.val_files=[{data}]"]
    return plan_study(read_study_file(STUDIES / f"{name}.yaml", [*words, f"study.output={folder}"]))


def test_every_study_is_known_here():
    assert {path.stem for path in STUDIES.glob("*.yaml")} - {"recipe"} == NUM_RUNS.keys()


@pytest.mark.parametrize("name", NUM_RUNS)
def test_a_study_passes_the_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = plan(name, tmp_path, monkeypatch)
    assert len(runs) == len({run.name for run in runs}) == NUM_RUNS[name]
    study = read_study_file(STUDIES / f"{name}.yaml")
    assert study.output == Path("outputs/studies") / name
    assert study.keys.parallel * runs[0].config.trainer.world_size == 2  # cores
    assert len({run.config.trainer.total_steps for run in runs}) == 1


def test_the_launcher_says_what_it_knows():
    answer = subprocess.run(["bash", str(STUDIES / "run.sh"), "stabilty"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert f"known: {' '.join(sorted(NUM_RUNS))}" in answer.stderr
