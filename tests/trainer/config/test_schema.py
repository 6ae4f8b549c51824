from trainer.config import changed_settings


def test_changed_settings_names_dotted_keys():
    before = {"actor": {"lr": 1e-6}, "trainer": {"seed": 1, "resume": "auto"}, "data": {"train_files": ["a.jsonl"]}}
    after = {"actor": {"lr": 2e-6}, "trainer": {"seed": 1}, "data": {"train_files": ("a.jsonl",)}, "new": 1}
    assert changed_settings(before, after) == {
        "actor.lr": (1e-6, 2e-6),
        "trainer.resume": ("auto", None),
        "new": (None, 1),
    }
