from pathlib import Path

import pytest

from cfpo_hybrid.errors import RewardError
from workers.reward.user_function import find_reward


def test_math_is_built_in():
    assert find_reward("math") == "math"


def test_a_function_is_found_without_running_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mine.py"
    path.write_text("from os.path import join as imported\nassigned = len\ndef score(*parts): ...\nraise SystemExit\n")
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
    (tmp_path / "mine.py").write_text("def score(*parts): ...\n")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(RewardError, match=message):
        find_reward(name.format(file=tmp_path / "mine.py", broken=tmp_path / "broken.py"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def score(response): ...", r"takes 1 arguments \(response\), not 4"),
        ("def score(response, truth): ...", "takes 2 arguments"),
        ("def score(a, b, c, d, e): ...", "takes 5 arguments"),
        ("score = lambda response: 1.0", "takes 1 arguments"),
        ("def score(a, b, c, d, *, weight): ...", "needs weight by name"),
        ("async def score(a, b, c, d): ...", "is async"),
        ("class score: ...", "is a class"),
        ("score: float = 1.0", "it is the constant 1.0"),
    ],
)
def test_a_function_that_cannot_be_called_is_told(tmp_path: Path, source: str, message: str):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(RewardError, match=message) as caught:
        find_reward(f"{tmp_path}/mine.py:score")
    assert "score(problem, response, ground_truth, extra)" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "def score(a, b, c, d): ...",
        "def score(a, /, b, c, d=None, e=0, *, f=1): ...",
        "def score(a, *others): ...",
        "def score(a, b, c, d, **more): ...",
        "import functools\n@functools.cache\ndef score(a): ...",
        "score = print",
    ],
)
def test_a_function_that_can_be_called_or_may_be_is_taken(tmp_path: Path, source: str):
    (tmp_path / "mine.py").write_text(source)
    find_reward(f"{tmp_path}/mine.py:score")
