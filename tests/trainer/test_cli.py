import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import WatchStop, WorkerError
from trainer import cli
from trainer.commands import train


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_check_prints_the_report(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", str(recipe), "algorithm.iterations=4"]) == 0
    out, err = capsys.readouterr()
    assert "16 optimizer steps a rollout, 15 of them off-policy, largest lag 15, each sample used 4 times\n" in out
    assert err == ""


@pytest.mark.slow
def test_check_needs_neither_engines_nor_pictures(recipe: Path):
    code = (
        "import sys; from trainer.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'ray', 'vllm', 'megatron', 'transformers', 'tensorboard', 'matplotlib'}; "
        "heavy &= {name.split('.')[0] for name in sys.modules}; "
        "assert not heavy, heavy; sys.exit(code)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, "check", str(recipe)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_a_user_mistake_exits_with_2_and_no_traceback(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", str(recipe), "actor.lrr=1", "rollout.group_size=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 mistakes in the configuration" in err
    assert "did you mean actor.lr?" in err
    assert "Traceback" not in err


def test_a_check_reports_before_it_names_the_files_that_lack(recipe: Path, capsys: pytest.CaptureFixture[str]):
    words = ["check", str(recipe), "data.train_files=[nowhere.jsonl]"]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert "steps a rollout" in out
    assert "'nowhere.jsonl' does not exist" in err
    assert cli.main([*words, "rollout.group_size=1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "2 mistakes" in err and "nowhere.jsonl" in err


def test_memory_that_does_not_fit_a_named_device_exits_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]):
    words = ["check", str(recipe), "trainer.device=cuda"]
    assert cli.main([*words, "--gpu-memory", "2"]) == 2
    assert "does not fit" in capsys.readouterr().out
    assert cli.main([*words, "--gpu-memory", "80"]) == 0


@pytest.mark.parametrize("words", [[], ["chek"], ["train"], ["eval"], ["check", "r.yaml", "--gpu-memory", "x"]])
def test_a_wrong_command_line_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: cfpo" in capsys.readouterr().err


def test_words_may_stand_behind_options(recipe: Path, capsys: pytest.CaptureFixture[str]):
    words = ["check", str(recipe), "trainer.device=cuda", "--gpu-memory", "80", "algorithm.iterations=4"]
    assert cli.main(words) == 0
    assert "each sample used 4 times" in capsys.readouterr().out
    for wrong in ([*words, "rest"], [*words, "--a=b"], ["plot", "folder", "a=b"]):
        with pytest.raises(SystemExit):
            cli.main(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_folders_and_options_that_cannot_be(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plot", str(recipe), "--losses", "clip"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert cli.main(["plot", str(tmp_path / "out"), "--losses", "clip", "--band", "ci"]) == 2
    assert "--band: for study directories only" in capsys.readouterr().err


def test_losses_lists_knobs_and_files(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["losses"]) == 0
    out = capsys.readouterr().out
    for part in ("cfpo", "dual_clip", "policy_loss.epsilon: float = 0.2", "policy_loss/clip.py:"):
        assert part in out


def test_check_loss_passes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check-loss", "clip", "clip_high=0.3"]) == 0
    assert "all 9 checks passed" in capsys.readouterr().out
    plugin = tmp_path / "wrong_loss.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from cfpo_hybrid import register_policy_loss\n"
        "@dataclass(frozen=True)\n"
        "class WrongConfig:\n"
        "    pass\n"
        "@register_policy_loss('wrong_for_cli_test', config=WrongConfig)\n"
        "def wrong(inputs, config):\n"
        "    return inputs.ratio * inputs.advantages\n"  # the sign is wrong
    )
    assert cli.main(["check-loss", "wrong_for_cli_test", "--plugins", str(plugin)]) == 1
    assert "FAIL  gradient at r = 1" in capsys.readouterr().out


def test_check_loss_refuses_unknown_names_and_knobs(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check-loss", "cfop"]) == 2
    assert cli.main(["check-loss", "cfpo", "eps=0.1"]) == 2
    assert cli.main(["check-loss", "cfpo", "epsilon"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'cfpo'" in err
    assert "no such knob" in err
    assert "write key=value" in err


def test_plot_of_nothing_exits_with_2(tmp_path: Path):
    assert cli.main(["plot", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["plot", str(tmp_path)]) == 2


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], list]:
    """Puts a command of the test's own in the place of ``train``; what it is called with is in the list."""

    def replace(error: BaseException | None = None) -> list:
        seen: list = []

        def run(arguments: object, say: object) -> int:
            seen.append(arguments)
            if error is not None:
                raise error
            return 0

        module = types.ModuleType("command_for_cli_test")
        vars(module).update(add_arguments=train.add_arguments, run=run)
        monkeypatch.setitem(sys.modules, "trainer.commands.train", module)
        return seen

    return replace


def test_a_failed_run_exits_with_1_and_names_the_worker(command, capsys: pytest.CaptureFixture[str]):
    command(WorkerError("hybrid", 3, "update_policy", "Traceback: out of memory"))
    assert cli.main(["train", "r.yaml"]) == 1
    assert "worker hybrid[rank 3] failed in update_policy:\nTraceback: out of memory" in capsys.readouterr().err


def test_a_run_that_the_watch_stopped_exits_with_3(command, capsys: pytest.CaptureFixture[str]):
    command(WatchStop("stopped after step 4 of 9, as declared: watch.kl"))
    assert cli.main(["train", "r.yaml"]) == 3
    assert capsys.readouterr().err == "cfpo train: stopped after step 4 of 9, as declared: watch.kl\n"


def test_an_interrupted_run_exits_with_130(command):
    command(KeyboardInterrupt())
    assert cli.main(["train", "r.yaml"]) == 130


def test_train_gets_its_recipe_and_overrides(command):
    seen = command()
    assert cli.main(["train", "r.yaml", "a.b=1", "rollout.top_k=-1"]) == 0
    assert seen[0].recipe == "r.yaml"
    assert seen[0].overrides == ["a.b=1", "rollout.top_k=-1"]


@pytest.mark.parametrize(
    "words", [["-v", "train", "r.yaml", "a=1"], ["train", "-v", "r.yaml", "a=1"], ["train", "r.yaml", "-v", "a=1"]]
)
def test_options_may_stand_anywhere(words: list[str], command):
    seen = command()
    assert cli.main(words) == 0
    assert seen[0].verbose
    assert (seen[0].recipe, seen[0].overrides) == ("r.yaml", ["a=1"])
    assert cli.main(["train", "r.yaml"]) == 0
    assert not seen[1].verbose


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cfpo_hybrid {version('cfpo_hybrid')}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: cfpo {name}" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    """Modules and not seconds are what is looked at: a time is not the same on every machine."""
    code = (
        "import sys; from trainer import cli; "
        "[cli.module_of(name) for name in cli.COMMANDS]; "
        "heavy = {'torch', 'numpy', 'omegaconf', 'rich', 'ray'} & set(sys.modules); assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("words", [["--help"], ["losses"]])
def test_folders_of_the_user_do_not_stand_for_ours(words: list[str], tmp_path: Path):
    for package in ("workers", "trainer", "cfpo_hybrid"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not this one')")
    code = "import sys; from trainer.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    # -P as in the installed `cfpo`: the current folder is not on the path by itself.
    command = [sys.executable, "-P", "-c", code, *words]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_plugins_are_found_from_the_current_folder(tmp_path: Path):
    (tmp_path / "plugin_of_a_user.py").write_text("print('loaded')")
    code = "import sys; from trainer.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-P", "-c", code, "losses", "--plugins", "plugin_of_a_user"]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.stdout.startswith("loaded\n"), answer.stderr


@pytest.mark.parametrize("words", [["losses"], ["--help"], ["check", "RECIPE"]])
def test_a_reader_that_leaves_ends_a_command_quietly(words: list[str], tmp_path: Path):
    words = [str(write_recipe(tmp_path)) if word == "RECIPE" else word for word in words]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert "BrokenPipe" not in errors and "Traceback" not in errors
    quiet = (0, cli.READER_GONE) if words == ["--help"] else (cli.READER_GONE,)  # argparse may overlook the closed pipe
    assert process.wait() in quiet


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["algorithm.advantage=dr_grpo"], "is Dr. GRPO with algorithm.loss_aggregation=seq_mean_token_sum_norm alone"),
        (["policy_loss.name=gspo", "policy_loss.clip_low=0.2"], "bound the ratio of a whole response"),
        (["algorithm.iterations=1", "algorithm.batch_ratio=1"], "every ratio is 1"),
        (["policy_loss.name=policy_gradient"], "takes samples of older weights for those of the policy in training"),
    ],
)
def test_a_check_notes_what_makes_another_algorithm(
    words: list[str], note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = str(write_recipe(tmp_path))
    assert cli.main(["check", recipe, *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert note in line
    assert cli.main(["check", recipe]) == 0
    assert "note:" not in capsys.readouterr().out
