"""Makes what the quickstart trains on: problems, a tokenizer and a base model that solves some of them.

    python examples/quickstart/make_world.py          # into outputs/quickstart/world, about a minute on two cores

The result is kept as long as neither the settings nor this code change:

    world/model/        a Hugging Face folder: Qwen2 with its tokenizer and chat template
    world/train.jsonl   problems with the columns of the MATH data set: problem, solution, level, type
    world/val.jsonl     others, which neither the warm-up nor the training sees
    world/world.json    the settings, and how much the base model solves
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from arithmetic import Problem, draw_problem, draw_problems, mixed_solution
from base_model import ModelSize, WarmUp, answer_problems, build_model, warm_up
from char_tokenizer import build_char_tokenizer

SOURCES = ("arithmetic.py", "base_model.py", "char_tokenizer.py", "make_world.py")
DEFAULT_OUT = Path("outputs/quickstart/world")


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Everything the world depends on besides its code."""

    seed: int = 0
    train_problems: int = 4096
    val_problems: int = 512
    probe_problems: int = 256
    """Validation problems that the finished base model is tried on."""
    size: ModelSize = field(default_factory=ModelSize)
    warm_up: WarmUp = field(default_factory=WarmUp)


def make_world(out: Path, settings: WorldSettings, write: Callable[[str], None] = print) -> bool:
    """Makes the world, unless it is there already.

    A world appears under its name only when it is complete.

    Args:
        out: its folder; an older world in it is replaced.
        settings: of the world.
        write: shows a line to the user.

    Returns:
        Whether a new world was made.
    """
    key = world_key(settings)
    if made_with(out) == key:
        write(f"the world in {out} is up to date")
        return False
    began = time.monotonic()
    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rates = _fill(draft, settings, write)
    content = {"key": key, "settings": asdict(settings), "base_accuracy": rates}
    (draft / "world.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    write(f"made {out} in {time.monotonic() - began:.0f} s; the base model solves {_percents(rates)} of new problems")
    return True


def world_key(settings: WorldSettings) -> str:
    """A hash of the settings, of this code and of the library that writes the model."""
    digest = hashlib.sha256(json.dumps([asdict(settings), transformers.__version__]).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def made_with(out: Path) -> str | None:
    """The key of the world in a folder; None when there is none."""
    try:
        return json.loads((out / "world.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return None


def _fill(out: Path, settings: WorldSettings, write: Callable[[str], None]) -> dict[str, float]:
    rng = random.Random(settings.seed)
    taken: set[Problem] = set()
    held_out = draw_problems(settings.val_problems, rng, taken)
    _write_problems(out / "val.jsonl", held_out)
    _write_problems(out / "train.jsonl", draw_problems(settings.train_problems, rng, taken))
    unseen = frozenset(held_out)

    def example() -> tuple[str, str]:
        problem = draw_problem(rng)
        while problem in unseen:
            problem = draw_problem(rng)
        return problem.text, mixed_solution(problem, rng)

    def report(step: int, loss: float) -> None:
        if step % 100 == 0 or step == settings.warm_up.steps:
            write(f"warm-up step {step} of {settings.warm_up.steps}: loss {loss:.3f}")

    torch.manual_seed(settings.seed)
    tokenizer = build_char_tokenizer(settings.size.max_positions)
    model = build_model(settings.size, tokenizer)
    write(f"warming up a base model of {model.num_parameters():,} parameters")
    warm_up(model, tokenizer, example, settings.warm_up, report)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")

    probe = held_out[: settings.probe_problems]
    greedy = answer_problems(model, tokenizer, [problem.text for problem in probe])
    sampled = answer_problems(model, tokenizer, [problem.text for problem in probe], temperature=1.0)
    return {"greedy": solved_share(probe, greedy), "sampled": solved_share(probe, sampled)}


def solved_share(problems: Sequence[Problem], responses: Sequence[str]) -> float:
    """Share of the responses that box the right sum."""
    right = [f"\\boxed{{{problem.answer}}}" in text for problem, text in zip(problems, responses, strict=True)]
    return sum(right) / len(right)


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    path.write_text("".join(json.dumps(problem.record()) + "\n" for problem in problems), encoding="utf-8")


def _percents(rates: dict[str, float]) -> str:
    return ", ".join(f"{rate:.0%} ({how})" for how, rate in rates.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the quickstart's problems, tokenizer and base model.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the world (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and base model (%(default)s)")
    arguments = parser.parse_args()
    make_world(arguments.out, WorldSettings(seed=arguments.seed))


if __name__ == "__main__":
    main()
