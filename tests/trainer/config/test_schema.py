from trainer.config import changed_settings


def test_changed_settings_names_dotted_keys():
    before = {"actor": {"lr": 1e-6}, "trainer": {"seed": 1, "resume": "auto"}, "data": {"train_files": ["a.jsonl"]}}
    after = {"actor": {"lr": 2e-6}, "trainer": {"seed": 1}, "data": {"train_files": ("a.jsonl",)}, "new": 1}
    assert changed_settings(before, after) == {
        "actor.lr": (1e-6, 2e-6),
        "trainer.resume": ("auto", None),
        "new": (None, 1),
    }


def test_a_recognised_column_is_the_same_as_its_usual_name():
    written = {"data": {"problem_key": "problem", "answer_key": "answer", "solution_key": "solution"}}
    recognised = {"data": {"problem_key": None, "answer_key": None, "solution_key": None}}
    assert changed_settings(written, recognised) == changed_settings(recognised, written) == {}
    other = {"data": {"problem_key": "prompt", "answer_key": None, "solution_key": None}}
    assert changed_settings(recognised, other) == {"data.problem_key": (None, "prompt")}
    assert changed_settings(written, other) == {"data.problem_key": ("problem", "prompt")}
