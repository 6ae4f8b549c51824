"""`cfpo eval`: scores any model on problems: reward, accuracy, pass@k, generations."""

import json
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.config import Config
from trainer.data import ValidationPrompts, load_validation, run_tokenizer
from trainer.evaluation.options import EvaluationSettings
from trainer.evaluation.scores import pass_at_k
from trainer.evaluation.validation import Evaluation, evaluate_prompts
from trainer.launch.live_engines import start_graders
from trainer.launch.ray_cluster import ray_cluster
from trainer.run.files import make_folder, write_atomically, write_jsonl
from trainer.run.reward_failures import RewardFailures
from trainer.session import absolute_model, resolve_device, validation_sampling
from workers.process import worker_environment
from workers.single_engine import GenerationSettings, GenerationWorker

ERROR = "_stderr"
"""How the name of a score's standard error ends."""


def evaluate(
    settings: EvaluationSettings, output: str | None = None, console: Console | None = None
) -> dict[str, float]:
    """Generates, scores and reports; writes ``scores.json`` and ``generations.jsonl``.

    Args:
        settings: what is evaluated, and how.
        output: folder for the results; by default under outputs/eval, by the model's path.
        console: shows them.

    Returns:
        What ``scores_of`` says.

    Raises:
        UserError: a model or files that cannot be used; nothing has been started.
    """
    config = settings.config
    tokenizer = run_tokenizer(config.model, config.data, config.rollout)
    prompts = load_validation(config, tokenizer)
    assert prompts is not None, "checked to have problems"
    folder = Path(output) if output else default_folder(settings.model)
    make_folder(folder, "--output")  # not when everything is done
    console = console or Console()
    if settings.recipe:
        console.print(f"settings of {settings.recipe}", markup=False, highlight=False, soft_wrap=True)
    answers = _answer(config, prompts)
    scores = scores_of(answers)
    write_jsonl(folder / "generations.jsonl", answers.rows())
    RewardFailures(folder / "reward_failures.txt", console.print).look(answers.reward_meta)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    _print(console, settings, scores, folder)
    return scores


def default_folder(model: str) -> Path:
    """Where the results of a model go: one folder for each path, so that no run's exports share it.

    Example: ``outputs/eval/outputs-quickstart-export`` for ``outputs/quickstart/export``.
    """
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    return Path("outputs/eval") / ("-".join(parts) or "model")


def _answer(config: Config, prompts: ValidationPrompts) -> Evaluation:
    model, device, trainer = absolute_model(config.model), resolve_device(config.trainer.device), config.trainer
    generation = GenerationSettings(
        model=model,
        rollout=config.rollout,
        rollout_layout=config.rollout_layout,
        max_model_len=config.data.max_prompt_length + config.data.max_response_length,
        device=device,
    )
    with ExitStack() as stack:
        stack.enter_context(ray_cluster(trainer, device))
        graders = stack.enter_context(start_graders(model, config.reward))
        actors = stack.enter_context(
            RayWorkerGroup(
                GenerationWorker,
                args=(generation,),
                pool=ResourcePool(
                    num_nodes=1,
                    workers_per_node=trainer.world_size,
                    cpus_per_worker=trainer.cpus_per_worker,
                    gpus_per_worker=1 if device == "cuda" else 0,
                ),
                layouts={"rollout": config.rollout_layout},
                role="generation",
                env=worker_environment(device, trainer.cpus_per_worker),
            )
        )
        actors.run(GenerationWorker.initialize)
        return evaluate_prompts(prompts, actors, graders, validation_sampling(config), GenerationWorker.generate)


def scores_of(answers: Evaluation) -> dict[str, float]:
    """What ``scores.json`` holds: the figures of a validation, and how many problems and samples there were.

    With several sets or sources, the names of their figures begin as in ``math500/accuracy``.
    """
    scores = answers.metrics()
    for prefix, part in answers.parts.items():
        right = answers.right(part)
        if right is not None:
            scores[f"{prefix}pass@1"] = pass_at_k(right, 1)
        scores[f"{prefix}problems"] = float(len(part.answered) + part.unanswered)
    return {**scores, "samples": float(answers.samples)}


def _print(console: Console, settings: EvaluationSettings, scores: dict[str, float], folder: Path) -> None:
    trainer, sets = settings.config.trainer, settings.config.data.validation_sets
    files = [f"{name}={file}" if name else file for name, files in sets.items() for file in files]
    how = (
        f"temperature {trainer.val_temperature:g}, top-p {trainer.val_top_p:g}" if trainer.val_temperature else "greedy"
    )
    table = Table(title=f"{settings.model} on {', '.join(files)} ({how})", title_justify="left")
    table.add_column("score")
    table.add_column("value (± standard error)", justify="right")
    for name, value in scores.items():
        if not name.endswith(ERROR):
            table.add_row(name, _value(name, value) + _error(name, scores))
    console.print(table)
    if scores["overlong"]:
        console.print(_overlong(scores), markup=False, highlight=False, soft_wrap=True)
    console.print(f"generations and scores: {folder}", markup=False, highlight=False, soft_wrap=True)


def _value(name: str, value: float) -> str:
    last = name.rpartition("/")[2]
    is_share = last == "accuracy" or last.startswith(("pass@", "maj@")) or last.endswith("share")
    return f"{value:.1%}" if is_share else f"{value:g}"


def _error(name: str, scores: dict[str, float]) -> str:
    return f" ± {_value(name, scores[name + ERROR])}" if name + ERROR in scores else ""


def _overlong(scores: dict[str, float]) -> str:
    """What became of prompts that are too long; `cfpo eval` never cuts them."""
    wrong = "count as wrong" if "accuracy" in scores else "are in no mean"
    number, problems = scores["overlong"], scores["problems"]
    return f"{number:g} of {problems:g} problems are over --max-prompt-length, have no response and {wrong}"
