import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

from cfpo_hybrid.resharding import ReshardPlan
from trainer import cli

STAGES = ["trainer.num_workers=4", "actor.megatron.pipeline_parallel_size=2", "actor.dtype=float32"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def cells(out: str, rank: str) -> list[str]:
    """The cells of a rank's line."""
    return next(
        row for line in out.splitlines() if (row := [cell.strip() for cell in line.split("│")[1:-1]])[:1] == [rank]
    )


def test_equal_layouts_move_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["reshard-plan", str(recipe), "actor.megatron.tensor_parallel_size=2"]) == 0
    out, err = capsys.readouterr()
    assert "Megatron dp 1 x pp 1 x tp 2 -> vLLM 2 replicas of tp 1" in out
    assert err == ""
    assert cli.main(["reshard-plan", str(recipe)]) == 0
    out = capsys.readouterr().out
    # 4 layers of 74,240 + a norm of 128 + the tied embedding of 100 x 128, in 4 bytes: the whole model, copied locally.
    assert cells(out, "0")[1:] == cells(out, "1")[1:] == ["1.2 MB", "0 bytes", "0 bytes", "0 bytes", "1.000"]
    assert "0 bytes cross processes" in out
    assert "proved for 2 of 2 ranks" in out


def test_stages_are_shown_rank_by_rank_and_saved(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "plan.json"
    assert cli.main(["reshard-plan", str(recipe), *STAGES, "--save", str(file)]) == 0
    out = capsys.readouterr().out
    for rank in "0123":
        local, sent, received, bound, ratio = cells(out, rank)[1:]
        assert local != "0 bytes" and sent != "0 bytes"
        assert received == bound and ratio == "1.000"
    assert f"saved as {file}" in out
    plan = ReshardPlan.load(file)
    # The replicas of a stage share the work: each gives a part to both replicas of the other.
    pairs = {
        (route.source_rank, route.destination_rank) for routes in plan.routes for route in routes if not route.is_local
    }
    assert pairs == {(source, 2 + other) for source in (0, 1) for other in (0, 1)} | {
        (2 + source, other) for source in (0, 1) for other in (0, 1)
    }


def test_many_ranks_are_summed_up(recipe: Path, capsys: pytest.CaptureFixture[str]):
    words = ["trainer.num_workers=32", *STAGES[1:], "actor.megatron.tensor_parallel_size=2"]
    assert cli.main(["reshard-plan", str(recipe), *words]) == 0
    out = capsys.readouterr().out
    least, mean, most = (cells(out, name) for name in ("least", "mean", "most"))
    assert least[3] == least[4] and most[3] == most[4]
    assert mean[5] == "1.000"
    assert "proved for 16 of 32 ranks" in out
    assert "largest sender over mean 1." in out


def test_sequences_split_over_ranks_and_chunks_of_stages_can_be_planned(
    recipe: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["actor.megatron.context_parallel_size=2", "actor.megatron.virtual_pipeline_parallel_size=2"]
    assert cli.main(["reshard-plan", str(recipe), *STAGES, *words]) == 0
    out = capsys.readouterr().out
    assert "Megatron dp 1 x pp 2 (in 2 chunks each) x cp 2 x tp 1 -> vLLM 4 replicas of tp 1; planned" in out
    for rank in "0123":
        local, _, received, bound, ratio = cells(out, rank)[1:]
        assert local != "0 bytes" and received == bound and ratio == "1.000"


def test_a_layout_that_does_not_fit_exits_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["reshard-plan", str(recipe), *STAGES[:1], "actor.megatron.pipeline_parallel_size=3"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main(["reshard-plan", str(recipe), *STAGES[:1], "actor.megatron.context_parallel_size=3"]) == 2
    assert "context_parallel_size=3 = 3 ranks; nearest numbers of workers: 3, 6" in capsys.readouterr().err
    assert cli.main(["reshard-plan", str(recipe), "--save", str(recipe.parent / "nowhere" / "plan.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["reshard-plan", str(recipe), "--save", str(recipe.parent)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_a_plan_asks_for_neither_data_nor_room_to_generate(recipe: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(recipe), *STAGES, "rollout.kv_cache_bytes=1", "data.train_files=[nowhere.jsonl]"]
    assert cli.main(["reshard-plan", *words]) == 0
    assert cli.main(["check", *words]) == 2
    assert "does not hold one sequence" in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_neither_ray_nor_the_engines(recipe: Path):
    code = (
        "import sys; from trainer.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'ray', 'vllm', 'megatron', 'transformers'} & {name.split('.')[0] for name in sys.modules}; "
        "assert not heavy, heavy; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "reshard-plan", str(recipe), *STAGES]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
