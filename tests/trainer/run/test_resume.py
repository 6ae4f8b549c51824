"""What a resume refuses by name, what it says, and what is free."""

import copy
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ConfigError
from trainer.run.checkpoint import TrainerState
from trainer.run.resume import check_inputs, check_resumable, resume_line

CONFIG = {
    "model": {"path": "m", "revision": None},
    "data": {
        "train_files": ["a.jsonl"],
        "train_batch_size": 8,
        "shuffle": True,
        "curriculum": "none",
        "curriculum_steps": 0,
        "level_key": "level",
        "system_prompt": None,
    },
    "actor": {"lr": 1e-6, "optimizer": {"schedule": "constant", "warmup_ratio": 0.0}},
    "trainer": {"seed": 1, "total_steps": 10, "run_dir": "outputs/run", "trackers": ["tensorboard"]},
}
LAYOUT = {"dp": 2, "pp": 1, "tp": 1}
INPUTS = {"model": "m0", "prompts": "16", "rows": "r0", "tokens": "t0"}


def state_of(config: dict, inputs: dict[str, str] = INPUTS) -> TrainerState:
    return TrainerState(
        step=4, policy_version=4, prompts_consumed=32, seed=1, layout=LAYOUT, config=config, inputs=inputs
    )


def with_settings(config: dict, **settings: object) -> dict:
    """Two underscores stand for a dot."""
    changed = copy.deepcopy(config)
    for key, value in settings.items():
        *sections, name = key.split("__")
        tree = changed
        for section in sections:
            tree = tree[section]
        tree[name] = value
    return changed


def refused(config: dict, inputs: dict[str, str] = INPUTS, **settings: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check_resumable(state_of(config, inputs), layout=LAYOUT, config=with_settings(config, **settings))
    return caught.value.problems


def accept(config: dict, **settings: object) -> None:
    check_resumable(state_of(config), layout=LAYOUT, config=with_settings(config, **settings))


WIDENING = with_settings(CONFIG, data__curriculum="widen", data__curriculum_steps=5)
ORDERED = with_settings(CONFIG, data__curriculum="order")


@pytest.mark.parametrize(
    ("config", "settings", "key"),
    [
        (CONFIG, {"trainer__seed": 2}, "trainer.seed is 2"),
        (CONFIG, {"data__shuffle": False}, "data.shuffle is False"),
        (CONFIG, {"data__curriculum": "order"}, "data.curriculum is 'order'"),
        (ORDERED, {"data__level_key": "grade"}, "data.level_key is 'grade'"),
        (WIDENING, {"data__curriculum_steps": 6}, "data.curriculum_steps is 6"),
        (WIDENING, {"data__train_batch_size": 16}, "data.train_batch_size is 16"),
    ],
)
def test_what_gives_the_place_in_the_data_another_meaning_is_refused(config, settings, key):
    (problem,) = refused(config, **settings)
    assert problem.startswith(f"{key}, but the checkpoint of step 4 was trained with")
    assert problem.endswith("set it back, or start a new run in another trainer.run_dir")


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CONFIG, {}),
        (CONFIG, {"actor__lr": 1e-5}),
        (CONFIG, {"data__level_key": "grade"}),  # no curriculum goes by it
        (ORDERED, {"data__curriculum_steps": 6}),
        (CONFIG, {"data__train_batch_size": 16}),  # the place is counted in prompts
        (CONFIG, {"data__train_files": ["b.jsonl"], "model__path": "n"}),  # their contents decide
    ],
)
def test_what_leaves_the_place_in_the_data_may_change(config, settings):
    accept(config, **settings)


def test_everything_that_forbids_a_resume_is_named_at_once():
    assert len(refused(CONFIG, trainer__seed=2, data__shuffle=False)) == 2


def test_a_checkpoint_without_a_fingerprint_goes_by_the_names():
    names = [
        problem.split(" is ")[0] for problem in refused(CONFIG, {}, model__path="n", data__train_files=["b.jsonl"])
    ]
    assert names == ["model.path", "data.train_files"]
    check_inputs(state_of(CONFIG, {}), INPUTS, CONFIG)


def test_paths_to_one_file_are_equal_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("home", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    saved = with_settings(CONFIG, data__train_files=[str(tmp_path / "real" / "a.jsonl"), "~/b.jsonl", "hub:x/y:train"])
    written = ["link/../real/a.jsonl", str(tmp_path / "home" / "b.jsonl"), "hub:x/y:train"]
    again = with_settings(saved, data__train_files=written, trainer__run_dir="./outputs/run")
    check_resumable(state_of(saved, {}), layout=LAYOUT, config=again)
    assert resume_line(state_of(saved), again) == "goes on after step 4, where its checkpoint was saved"
    other = with_settings(saved, data__train_files=["link/c.jsonl", *written[1:]])
    with pytest.raises(ConfigError, match=r"data\.train_files is .*c\.jsonl"):
        check_resumable(state_of(saved, {}), layout=LAYOUT, config=other)


def test_other_contents_are_refused_and_the_suspects_named():
    config = with_settings(CONFIG, data__system_prompt="Think.", actor__lr=1.0)
    with pytest.raises(ConfigError) as caught:
        check_inputs(state_of(CONFIG), INPUTS | {"model": "m1", "rows": "r1", "prompts": "15"}, config)
    of_model, of_data = caught.value.problems
    assert of_model.startswith("model.path=m is not the model that the checkpoint of step 4 was trained from")
    assert "give 15 prompts that are not the 16" in of_data
    assert "Changed: data.system_prompt or the contents of the files; set it back" in of_data


def test_what_changes_results_is_said_and_the_rest_is_not():
    changed = with_settings(
        CONFIG, actor__lr=1e-5, data__train_batch_size=16, trainer__trackers=[], trainer__total_steps=20
    )
    line = resume_line(state_of(CONFIG), changed, INPUTS)
    assert line.endswith("from now on with data.train_batch_size=16 (was 8), actor.lr=1e-05 (was 1e-06)")
    tokens = resume_line(state_of(CONFIG), CONFIG, INPUTS | {"tokens": "t1"})
    assert tokens.endswith(
        "; the same problems become other tokens than before (chat template, system prompt or tokenizer)"
    )


@pytest.mark.parametrize("optimizer", [{"schedule": "cosine"}, {"warmup_ratio": 0.1}])
def test_more_steps_under_a_schedule_are_told_of(optimizer: dict):
    scheduled = with_settings(CONFIG, **{f"actor__optimizer__{key}": value for key, value in optimizer.items()})
    longer = with_settings(scheduled, trainer__total_steps=20)
    assert "follows the schedule of 20 steps from here on, not that of 10" in resume_line(state_of(scheduled), longer)
    assert "schedule" not in resume_line(state_of(scheduled), scheduled)


def test_another_layout_is_only_logged(caplog: pytest.LogCaptureFixture):
    check_resumable(state_of(CONFIG), layout={"dp": 1, "pp": 1, "tp": 2}, config=CONFIG)
    for part in ("dp=2, pp=1, tp=1", "dp=1, pp=1, tp=2"):
        assert part in caplog.text
