from pathlib import Path
from typing import Any

import pytest
from tiny_study import write_study_file

from cfpo_hybrid.errors import ConfigError
from trainer.study.study import cell_name, cells_of
from trainer.study.study_file import read_study_file


def mistakes(folder: Path, *words: str, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read_study_file(write_study_file(folder, **keys), words)
    return caught.value.problems


def test_words_set_the_study_or_every_run(tmp_path: Path):
    words = ["study.parallel=3", "study.seeds=[5]", "study.axes={algorithm.iterations: [2]}", "actor.lr=0.5"]
    study = read_study_file(write_study_file(tmp_path, settings={"actor": {"lr": 0.1}}), words)
    assert (study.keys.parallel, study.keys.seeds, study.axes) == (3, [5], {"algorithm.iterations": [2]})
    assert [source.tree for source in study.sources_of(cells_of(study.axes)[0])] == [
        {"actor": {"lr": 0.1}},
        {"actor.lr": 0.5},
        {"algorithm.iterations": 2},
    ]


def test_an_empty_word_takes_back_what_the_file_says(tmp_path: Path):
    entry = {"when": {"algorithm.iterations": 4}, "set": {"actor.lr": 0.2}}
    path = write_study_file(tmp_path, cells=[entry], settings={"actor.lr": 0.1})
    study = read_study_file(path, ["study.cells=[]", "study.settings={}"])
    assert study.keys.cells == []
    assert [source.tree for source in study.settings] == [{}]


def test_settings_of_some_cells(tmp_path: Path):
    entry = {"when": {"policy_loss.name": ["cfpo", "spo"], "algorithm.iterations": 4}, "set": {"actor.lr": 0.2}}
    axes = {"policy_loss.name": ["clip", "cfpo"], "algorithm.iterations": [1, 4]}
    study = read_study_file(write_study_file(tmp_path, axes=axes, cells=[entry]))
    changed = [cell_name(cell) for cell in cells_of(axes) if study.sources_of(cell)[-1].tree == {"actor.lr": 0.2}]
    assert changed == ["cfpo-iterations4"]


def test_all_mistakes_of_the_file_come_together(tmp_path: Path):
    found = mistakes(
        tmp_path,
        "nonsense",
        mode="iso_samples",
        seeds=[1, 1],
        parallel=0,
        sedes=[3],
        settings=[1],
        axes={"actor.lr": 1e-3, "algorithm.iterations": [2, 2]},
        cells=[{"when": {}}],
    )
    expected = [
        "'nonsense' is no override",
        "unknown key 'sedes'; did you mean seeds? [study.yaml line",
        "mode='iso_samples' is unknown; known: iso_sample, iso_compute; did you mean 'iso_sample'?",
        "seeds=[1, 1] must be different whole numbers",
        "parallel=0 must be at least 1",
        "settings=[1] must be a mapping",
        "axes: actor.lr=0.001 must be a list",
        "axes: algorithm.iterations=[2, 2] must be a list of different values",
        "cells: {'when': {}} must have two mappings",
    ]
    assert len(found) == len(expected)
    for message, start in zip(found, expected, strict=True):
        assert message.startswith(start)


def test_settings_stand_where_they_take_effect(tmp_path: Path):
    found = mistakes(
        tmp_path,
        "policy_loss.name=cfpo",
        settings={"trainer": {"seed": 7}, "trainer.device": "cpu"},
        axes={"policy_loss.name": ["clip", "cfpo"], "trainer.run_dir": ["a", "b"], "trainer.device": ["cpu"]},
        cells=[
            {"when": {"actor.lr": 1}, "set": {"trainer.resume": "never"}},
            {"when": {"policy_loss.name": "spo"}, "set": {}},
        ],
    )
    expected = [
        "trainer.seed is set by the study; list them as seeds",
        "trainer.run_dir is set by the study; name the folder of all runs as output",
        "trainer.resume is set by the study",
        "trainer.device is the same for all runs of a study",
        "policy_loss.name is an axis of the study",
        "trainer.device is an axis of the study",
        "cells: 'when' names actor.lr, no axis; axes: policy_loss.name, trainer.run_dir, trainer.device",
        "cells: no cell has {'policy_loss.name': 'spo'}",
    ]
    assert len(found) == len(expected)
    for message in expected:
        assert any(one.startswith(message) for one in found), message


def test_a_missing_study_file_is_called_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no study file"):
        read_study_file(tmp_path / "nowhere.yaml")
