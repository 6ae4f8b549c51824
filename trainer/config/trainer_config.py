"""Configuration of the run itself: its size, length, directory, validation, checkpoints and trackers."""

from dataclasses import dataclass, field


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
    """Steps between validations; 0 validates only before and after, where val_files are given."""
    val_before_train: bool = True
    """Validates the starting model too."""
    val_temperature: float = 0.0
    """Sampling temperature in validation; 0 is greedy."""
    val_top_p: float = 1.0
    """Nucleus of validation sampling."""
    val_samples: int = 1
    """Responses a validation problem; accuracy is their mean."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Beside metrics.jsonl, which is always written: "tensorboard", "wandb"."""
    project: str = "cfpo_hybrid"
    """Project name for trackers that group runs."""
    generations_every: int = 10
    """Steps between saved generations; 0 saves none."""
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
