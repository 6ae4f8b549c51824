"""`cfpo eval`: scores any model on problems: reward, accuracy, pass@k, generations."""

import json
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import ModelShape, load_hf_config, model_shape
from cfpo_hybrid.models.engine_specs import check_rollout_divides
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.config import DataConfig, TrainerConfig
from trainer.data import ValidationPrompts, run_tokenizer
from trainer.evaluation.options import EvaluationOptions, Lengths
from trainer.evaluation.scores import pass_at_k
from trainer.evaluation.validation import Evaluation, evaluate_prompts
from trainer.launch.live_engines import start_graders
from trainer.launch.ray_cluster import ray_cluster
from trainer.run.checkpoint import saved_model
from trainer.run.files import make_folder, write_atomically, write_jsonl
from trainer.run.reward_failures import RewardFailures
from trainer.session import absolute_model, resolve_device
from workers.config import ModelConfig, RewardConfig, RolloutConfig
from workers.process import worker_environment
from workers.reward.user_function import find_reward
from workers.rollout.engine import SamplingSettings
from workers.single_engine import GenerationSettings, GenerationWorker

ERROR = "_stderr"
"""How the name of a score's standard error ends."""


def evaluate(options: EvaluationOptions, console: Console | None = None) -> dict[str, float]:
    """Generates, scores and reports; writes ``scores.json`` and ``generations.jsonl``.

    Returns:
        What ``scores_of`` says.

    Raises:
        UserError: a model or files that cannot be used; nothing has been started.
    """
    model = absolute_model(ModelConfig(path=saved_model(options.model)))
    lengths = _lengths(options, model_shape(load_hf_config(model.path)))
    find_reward(options.reward, "--reward")
    prompts = _prompts(options, model, lengths)
    folder = Path(options.output) if options.output else default_folder(options.model)
    make_folder(folder, "--output")  # not when everything is done
    console = console or Console()
    answers = _answer(options, model, prompts, lengths)
    scores = scores_of(answers)
    write_jsonl(folder / "generations.jsonl", answers.rows())
    RewardFailures(folder / "reward_failures.txt", console.print).look(answers.reward_meta)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    _print(console, options, scores, folder)
    return scores


def default_folder(model: str) -> Path:
    """Where the results of a model go: one folder for each path, so that no run's exports share it.

    Example: ``outputs/eval/outputs-quickstart-export`` for ``outputs/quickstart/export``.
    """
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    return Path("outputs/eval") / ("-".join(parts) or "model")


def _lengths(options: EvaluationOptions, shape: ModelShape) -> Lengths:
    """What fits the model, which must divide over the ranks of a replica."""
    try:
        check_rollout_divides(shape, options.tensor_parallel_size)
    except ModelError as error:
        raise ConfigError(f"--tensor-parallel-size {options.tensor_parallel_size}: {error}") from error
    return Lengths.of(options, shape.max_position_embeddings)


def _prompts(options: EvaluationOptions, model: ModelConfig, lengths: Lengths) -> ValidationPrompts:
    data = DataConfig(
        train_files=[],
        val_sets=options.sets,
        val_limit=options.limit,
        max_prompt_length=lengths.prompt,
        max_response_length=lengths.response,
        system_prompt=options.system_prompt,
        chat_template_kwargs=dict(options.chat_template_kwargs),
    )
    return ValidationPrompts(
        data, run_tokenizer(model, data, _rollout(options)), samples=options.samples, seed=options.seed
    )


def _answer(options: EvaluationOptions, model: ModelConfig, prompts: ValidationPrompts, lengths: Lengths) -> Evaluation:
    device = resolve_device(options.device)
    trainer = TrainerConfig(num_workers=options.num_workers)
    layout = ParallelLayout.of_world(options.num_workers, tp=options.tensor_parallel_size)
    settings = GenerationSettings(
        model=model,
        rollout=_rollout(options),
        rollout_layout=layout,
        max_model_len=lengths.prompt + lengths.response,
        device=device,
    )
    sampling = SamplingSettings(
        max_tokens=lengths.response,
        temperature=options.temperature,
        top_p=options.top_p,
        greedy=options.greedy,
    )
    with ExitStack() as stack:
        stack.enter_context(ray_cluster(trainer, device))
        graders = stack.enter_context(start_graders(model, _reward(options)))
        actors = stack.enter_context(
            RayWorkerGroup(
                GenerationWorker,
                args=(settings,),
                pool=ResourcePool(
                    num_nodes=1,
                    workers_per_node=options.num_workers,
                    cpus_per_worker=1,
                    gpus_per_worker=1 if device == "cuda" else 0,
                ),
                layouts={"rollout": layout},
                role="generation",
                env=worker_environment(device, 1),
            )
        )
        actors.run(GenerationWorker.initialize)
        return evaluate_prompts(prompts, actors, graders, sampling, GenerationWorker.generate)


def _rollout(options: EvaluationOptions) -> RolloutConfig:
    return RolloutConfig(
        tensor_parallel_size=options.tensor_parallel_size, gpu_memory_utilization=0.9, stop=options.stop
    )


def _reward(options: EvaluationOptions) -> RewardConfig:
    return RewardConfig(name=options.reward, pass_threshold=options.pass_threshold)


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


def _print(console: Console, options: EvaluationOptions, scores: dict[str, float], folder: Path) -> None:
    how = "greedy" if options.greedy else f"temperature {options.temperature}, top-p {options.top_p}"
    table = Table(title=f"{options.model} on {', '.join(options.files)} ({how})", title_justify="left")
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
