from pathlib import Path

import pytest

from cfpo_hybrid.errors import RewardError
from workers.reward.user_function import find_reward


def test_math_is_built_in():
    assert find_reward("math") == "math"


def test_a_function_is_found_without_running_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mine.py"
    path.write_text("from os.path import join as imported\nassigned = 1\ndef score(): ...\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    assert find_reward("mine.py:score") == f"{path}:score"
    for name in (f"{path}:imported", f"{path}:assigned"):
        assert find_reward(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "must be 'math' or 'path/to/file.py:function'"),
        ("{file}", "must be 'math'"),
        ("{file}:", "must be 'math'"),
        ("nowhere.py:score", "there is no file"),
        ("{file}:scor", "did you mean 'score'"),
        ("{file}:other_thing", "it defines score"),
        ("{broken}:score", "not valid Python"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, name: str, message: str):
    (tmp_path / "mine.py").write_text("def score(): ...\n")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(RewardError, match=message):
        find_reward(name.format(file=tmp_path / "mine.py", broken=tmp_path / "broken.py"))
