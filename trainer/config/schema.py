"""The sections of a recipe as frozen dataclasses, the numbers that follow from them, and plain settings again.

    model       which model                        rollout     generation with vLLM
    data        prompts                            reward      how responses are scored
    actor       Megatron-core and the optimizer    algorithm   advantages, off-policy pressure, KL, aggregation
    policy_loss the loss and its own knobs         trainer     workers, length, directory
    watch       limits that stop a run

Sections that workers read are in ``workers.config``. A derived number is a property here, never a second knob.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import MISSING

from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import (
    ActorConfig,
    AlgorithmConfig,
    ModelConfig,
    PolicyLossConfig,
    RewardConfig,
    RolloutConfig,
    WatchConfig,
)
from workers.step_plan import StepPlan


@dataclass(frozen=True)
class DataConfig:
    """Which problems are trained and validated on, and how they become prompts.

    A file is a path that ends in .jsonl or .parquet, or a Hugging Face data set: ``hub:NAME:SPLIT`` or
    ``hub:NAME:CONFIG:SPLIT``, e.g. ``hub:openai/gsm8k:main:train``.
    """

    train_files: list[str] = MISSING
    """One or several files; their rows are joined."""
    val_files: list[str] | None = None
    """Problems to validate on, one set without a name; neither these nor val_sets validates never."""
    val_sets: dict[str, list[str]] = field(default_factory=dict)
    """In the place of val_files: several sets by name, each of one or several files, with metrics of their own. On the
    command line data.val_sets.NAME=FILE; an empty list leaves a set out."""
    train_batch_size: int = 128
    """Prompts of a rollout step."""
    val_batch_size: int | None = None
    """Prompts that are validated at a time; all by default."""
    val_limit: int | None = None
    """Only the first so many problems of each validation set."""
    max_prompt_length: int = 512
    """Tokens of a prompt, chat template, system prompt and examples included."""
    max_response_length: int = 1024
    """Tokens of a response."""
    overlong: str = "filter"
    """Prompts over max_prompt_length: "filter" leaves them out of training and counts them as wrong in validation, "cut"
    keeps only their last tokens."""
    shuffle: bool = True
    """A new order every epoch, from trainer.seed; otherwise the order of the files."""
    curriculum: str = "none"
    """"order": each epoch goes from easy levels to hard ones; "widen": begins with the easiest level alone, the others
    come in one by one."""
    curriculum_steps: int = 0
    """Rollout steps (of train_batch_size prompts) over which "widen" lets the levels in, each after an equal share."""
    level_key: str = "level"
    """Column of the level: a number, or a text with one, e.g. "Level 3"; rows without one count as the hardest."""
    system_prompt: str | None = None
    """Becomes the chat's system message, unless the row's messages have one."""
    chat_template: str | None = None
    """A Jinja file to use in the place of the tokenizer's own chat template."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told besides the chat, e.g. ``{enable_thinking: false}``; it must know each by its name."""
    examples: list[dict[str, str]] | None = None
    """Messages put before each problem, behind the system message: a list of role and content, user and assistant in
    turn."""
    problem_key: str | None = None
    """Column of the question: a text, or a list of messages. Null recognises the columns of each file by their names:
    problem, prompt (verl), question (GSM8K), messages. A name with dots reaches into a nested column."""
    answer_key: str | None = None
    """Column of the final answer; what a response is compared with where it is there. Null: answer, or
    reward_model.ground_truth (verl)."""
    solution_key: str | None = None
    """Column of a worked solution with a boxed answer; used where there is no answer. Null: solution."""
    none_values: list[str] | None = None
    """Texts that mean "no answer" in an answer or a solution, e.g. ["N/A", "-"]; nulls, blanks, NaN and infinity do."""
    source_key: str = "data_source"
    """Column that says where a row comes from; a validation set with several sources has metrics for each. A name with dots
    reaches into a nested column."""

    @property
    def validation_sets(self) -> dict[str, list[str]]:
        """The files of each validation set by its name, "" for that of val_files; sets without a file are left out."""
        sets = {"": self.val_files or [], **self.val_sets}
        return {name: files for name, files in sets.items() if files}


@dataclass(frozen=True)
class TrainerConfig:
    """How many workers run for how long, and what is kept."""

    num_workers: int | None = None
    """Worker processes of the whole run, one a device; or leave it out and give nodes x workers_per_node."""
    nodes: int = 1
    """Nodes of the cluster that the workers are packed on."""
    workers_per_node: int | None = None
    """Workers on each node: with GPUs, the GPUs of a node."""
    cpus_per_worker: int = 1
    """CPU cores that each worker asks Ray for."""
    device: str = "auto"
    """"cpu", "cuda" or "auto": cuda where a GPU is seen."""
    ray_address: str | None = None
    """A running cluster: "auto" or "host:port". Left out, a Ray of the run's own starts on this machine."""
    cluster_wait_seconds: float = 300.0
    """With ray_address: how long the start waits for nodes that have yet to join and for resources that others use."""

    total_steps: int = 100
    """Rollout steps: each generates, scores and trains on one batch of prompts."""
    seed: int = 1
    """Of the order of prompts, of sampling and of mini-batches."""
    run_dir: str = "outputs/run"
    """Where config, metrics, generations, checkpoints and plots go."""
    resume: str = "auto"
    """"auto" goes on from the last checkpoint in run_dir, "never" starts anew, a path names a checkpoint."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves none."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; 0 keeps all."""
    export_final: bool = True
    """Writes the trained model as a Hugging Face folder at the end."""

    val_every: int = 0
    """Steps between validations; 0 validates only before and after, where there are validation files."""
    val_before_train: bool = True
    """Validates the starting model too."""
    val_temperature: float = 0.0
    """Sampling temperature in validation; 0 is greedy."""
    val_top_p: float = 1.0
    """Nucleus of validation sampling."""
    val_samples: int = 1
    """Responses a validation problem; accuracy is their mean, and above 1 there are pass@k and maj@k too."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Beside metrics.jsonl, which is always written: "tensorboard", "wandb", "mlflow", "trackio"."""
    project: str = "cfpo_hybrid"
    """What trackers file the run under: wandb's project, MLflow's experiment."""
    run_name: str | None = None
    """What trackers call the run; left out, the name of run_dir's folder."""
    run_group: str | None = None
    """What trackers call the runs that it belongs to; left out, a run of a study takes the study's name."""
    tags: list[str] = field(default_factory=list)
    """Words by which trackers find the run."""
    generations_every: int = 10
    """Steps between saved generations, beside those of the first and of the last step; 0 saves none."""
    keep_generations: int = 100
    """Files of generations to keep, the first and the newest ones, of training and of validation each; 0 keeps all."""
    save_rollouts_every: int = 0
    """Steps between rollout batches saved whole, as `cfpo lab` reads them; 0 saves none."""
    progress: bool = True
    """A progress bar on a terminal; false writes a line a step there too."""

    @property
    def world_size(self) -> int:
        """Workers of the whole run."""
        if self.num_workers is not None:
            return self.num_workers
        return self.nodes * (self.workers_per_node or 1)

    @property
    def workers_on_a_node(self) -> int:
        """Workers packed on each node."""
        return self.workers_per_node or self.world_size // self.nodes


@dataclass(frozen=True)
class Config:
    """Everything that a run is told. Frozen: nothing changes a setting after loading."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def train_layout(self) -> ParallelLayout:
        """How Megatron's processes are laid out."""
        megatron = self.actor.megatron
        return ParallelLayout.of_world(
            self.trainer.world_size,
            tp=megatron.tensor_parallel_size,
            pp=megatron.pipeline_parallel_size,
            cp=megatron.context_parallel_size,
            ep=megatron.expert_parallel_size,
        )

    @property
    def rollout_layout(self) -> ParallelLayout:
        """How vLLM's processes are laid out: replicas of consecutive ranks."""
        return ParallelLayout.of_world(self.trainer.world_size, tp=self.rollout.tensor_parallel_size)

    @property
    def responses_per_step(self) -> int:
        """Rows of a rollout batch: prompts x group size."""
        return self.data.train_batch_size * self.rollout.group_size

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the whole run; the learning-rate schedule is counted in these."""
        return self.trainer.total_steps * self.algorithm.updates_per_step

    @cached_property
    def plan(self) -> StepPlan:
        """What a rollout step does.

        Raises:
            UserError: there is no such loss or advantage, which a loaded configuration has been checked for.
        """
        return StepPlan.of(self.algorithm, self.policy_loss, self.rollout)


USUAL_COLUMNS = {"data.problem_key": "problem", "data.answer_key": "answer", "data.solution_key": "solution"}
"""The columns that are taken first where a key is null."""


def resolved(config: Config) -> dict[str, Any]:
    """Plain nested settings, which are a recipe of the same run: defaults included, the loss's knobs beside its name."""
    tree = asdict(config)
    tree["policy_loss"] |= tree["policy_loss"].pop("knobs")
    return tree


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two nested configs, with the saved and the current value.

    A column that is recognised is the same as its usual name written out.
    """
    before, now = flat(saved), flat(current)
    keys = [*before, *(key for key in now if key not in before)]
    for key, usual in USUAL_COLUMNS.items():
        if key in before and key in now and {before[key], now[key]} == {None, usual}:
            keys.remove(key)
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, tuples as lists."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings.update(flat(value, f"{prefix}{key}."))
        else:
            settings[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return settings
