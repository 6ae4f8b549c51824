"""`cfpo eval`: scores any model on problems: reward, accuracy, pass@k, generations."""

import json
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import ModelShape, load_hf_config, model_shape
from cfpo_hybrid.models.engine_specs import check_rollout_divides
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.config import DataConfig, TrainerConfig
from trainer.data import ValidationPrompts, run_tokenizer
from trainer.evaluation.options import EvaluationOptions, Lengths
from trainer.evaluation.validation import Evaluation, evaluate_prompts
from trainer.launch.live_engines import start_graders
from trainer.launch.ray_cluster import ray_cluster
from trainer.run.checkpoint import saved_model
from trainer.run.files import make_folder, write_atomically, write_jsonl
from trainer.run.metrics import counted_rewards
from trainer.run.reward_failures import RewardFailures
from trainer.session import absolute_model, resolve_device
from workers.config import ModelConfig, RewardConfig, RolloutConfig
from workers.process import worker_environment
from workers.reward.user_function import find_reward
from workers.rollout.engine import SamplingSettings
from workers.single_engine import GenerationSettings, GenerationWorker


def evaluate(options: EvaluationOptions, console: Console | None = None) -> dict[str, float]:
    """Generates, scores and reports; writes ``scores.json`` and ``generations.jsonl``.

    Returns:
        ``accuracy`` and ``pass@k`` of a reward that is a verdict, the mean reward and the mean length.

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


def pass_at_k(correct: Tensor, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k), mean over problems (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        correct: ``[problem, sample]`` bool.
        k: at most the number of samples n.
    """
    samples = correct.shape[1]
    wrong = samples - correct.sum(dim=1, dtype=torch.float64)
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i); a factor at or below 0 makes it 0.
    drawn = torch.arange(k, dtype=torch.float64)
    none_right = ((wrong[:, None] - drawn).clamp(min=0) / (samples - drawn)).prod(dim=1)
    return (1 - none_right).mean().item()


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


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
        val_files=list(options.files),
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
    """What ``scores.json`` holds: accuracy and pass@k where the reward is a verdict, rewards, counts and lengths."""
    verdicts, accuracy = answers.verdicts, answers.accuracy
    judged = {}
    if verdicts is not None and accuracy is not None:
        # A response that was not judged is not right either.
        chances = {f"pass@{k}": pass_at_k(verdicts == 1.0, k) for k in powers_up_to(answers.samples)}
        judged = {"accuracy": accuracy, **chances}
    of_all = answers.metrics()
    return {
        **judged,
        "reward": of_all["val/reward"],
        "problems": float(answers.rewards.shape[0]),
        "samples": float(answers.samples),
        "response_length": of_all["val/response_length"],
        "truncated_share": of_all["val/truncated_share"],
        **counted_rewards(answers.reward_meta),
    }


def _print(console: Console, options: EvaluationOptions, scores: dict[str, float], folder: Path) -> None:
    how = "greedy" if options.greedy else f"temperature {options.temperature}, top-p {options.top_p}"
    table = Table(title=f"{options.model} on {', '.join(options.files)} ({how})", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        is_share = name == "accuracy" or name.startswith("pass@") or name.endswith("share")
        table.add_row(name, f"{value:.1%}" if is_share else f"{value:g}")
    console.print(table)
    console.print(f"generations and scores: {folder}", markup=False, highlight=False, soft_wrap=True)
