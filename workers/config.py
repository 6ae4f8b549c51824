"""Configuration of the workers: the model, the actor (Megatron), the rollout (vLLM), the reward,
the algorithm, and the collapse watch: limits that a run declares, and what follows when one is crossed.

Frozen dataclasses that OmegaConf can merge a recipe into; the rules between fields live in ``trainer/rules/``.
"""

from dataclasses import dataclass, field
from typing import Any

from cfpo_hybrid.algorithms.mismatch import RolloutCorrection
from cfpo_hybrid.models.stages import PipelineCut


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained."""

    path: str = "???"
    """Hugging Face id or local folder with config.json, a tokenizer and safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Runs Python code shipped with the tokenizer; off unless asked for."""


@dataclass(frozen=True)
class MegatronConfig:
    """How Megatron-core lays the model out over ranks."""

    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Stages that the layers are divided into."""
    virtual_pipeline_parallel_size: int = 1
    """Chunks that each stage's layers are divided into, which are as many rounds through the stages apart: a smaller
    pipeline bubble for more messages. Above 1 every stage must divide by it."""
    expert_parallel_size: int = 1
    """Ranks of a stage, over tp and dp alike, that share the experts of each layer, which stay whole."""
    context_parallel_size: int = 1
    """Ranks that share each sequence. Training supports only 1; `cfpo reshard-plan` takes any size."""
    sequence_parallel: bool = False
    """Splits norms and dropouts over tp along the tokens; needs tensor_parallel_size > 1."""
    distributed_optimizer: bool = True
    """Shards fp32 master weights and Adam moments over dp."""
    first_stage_layers: int | None = None
    """Transformer layers of the first pipeline stage when stages are uneven."""
    last_stage_layers: int | None = None
    """Transformer layers of the last pipeline stage when stages are uneven."""
    recompute: bool = False
    """Full activation recomputation, one layer at a time."""
    offload: bool = False
    """Moves weights and optimizer state to host memory while vLLM generates, and drops gradients (GPU only)."""

    @property
    def cut(self) -> PipelineCut:
        """How the layers are cut into stages."""
        return PipelineCut(
            first=self.first_stage_layers, last=self.last_stage_layers, chunks=self.virtual_pipeline_parallel_size
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning-rate schedule (counted in optimizer steps)."""

    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: str = "constant"
    """"constant" or "cosine"."""
    warmup_ratio: float = 0.0
    """Share of all optimizer steps with linear warm-up."""
    min_lr_ratio: float = 0.0
    """End of the cosine, as a share of actor.lr."""
    grad_cosine: bool = False
    """Measures actor/grad_cosine, the cosine of each gradient to that of the previous optimizer step; keeps an fp32 copy
    of the gradients (with the distributed optimizer of this rank's shard)."""


@dataclass(frozen=True)
class ActorConfig:
    """The policy in training."""

    lr: float = 1e-6
    """Peak learning rate."""
    micro_batch_tokens: int = 16384
    """Tokens (prompt and response) of the rows in one micro-batch, per dp rank; a longer row gets one of its own. A prompt
    that rows share is packed once and counts in each."""
    dtype: str = "auto"
    """"float32", "bfloat16" or "auto": bfloat16 on a GPU, float32 on a CPU. Master weights and gradients are fp32."""
    attention: str = "auto"
    """"flash_attn", "torch_varlen", "sdpa" or "auto": the first the machine has, in this order."""
    log_prob_chunk_tokens: int = 1024
    """Tokens whose logits exist at one time."""
    megatron: MegatronConfig = field(default_factory=MegatronConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class RolloutConfig:
    """Generation with vLLM."""

    group_size: int = 8
    """Responses sampled for each prompt."""
    generation_rounds: int = 1
    """Rounds of generation that a step may take. Above 1, prompts whose responses all earn the same are dropped and
    replaced by the next ones (DAPO's dynamic sampling)."""
    temperature: float = 1.0
    """Sampling temperature in training; the actor's log-probs are taken at the same one."""
    top_p: float = 1.0
    """Below 1 only with a mode of algorithm.rollout_correction: truncated sampling reports no full-softmax log-probs."""
    top_k: int = -1
    """Other than -1 (all tokens) likewise."""
    stop: list[str] = field(default_factory=list, hash=False)
    """Texts that end a response, in validation too, beside the end-of-sequence tokens that the model's files name. The
    response keeps them. One that is a special token, e.g. "<|im_end|>", costs nothing; others need each response's text."""
    tensor_parallel_size: int = 1
    """Ranks of one vLLM replica; may differ from the training's."""
    dtype: str = "auto"
    """"float32", "bfloat16" or "auto": the actor's."""
    gpu_memory_utilization: float = 0.6
    """Share of the device that vLLM may fill (GPU only)."""
    kv_cache_bytes: int = 256 * 1024 * 1024
    """Size of the KV cache on a CPU. A sequence for which no room is left waits and goes on later, with the same
    response."""
    max_num_seqs: int = 256
    """Most sequences decoded at one time, per replica; further ones wait. Responses do not depend on it."""
    max_num_batched_tokens: int = 8192
    """Most tokens in one forward pass of vLLM, per replica; at least a prompt and its response of the greatest lengths.
    Further prompts wait for the next pass. Responses do not depend on it."""
    enable_prefix_caching: bool = True
    """Shares the keys and values of a prompt among its group; dropped at every reshard."""
    enforce_eager: bool = False
    """Turns vLLM's CUDA graphs and compilation off (GPU only; always so on a CPU)."""
    load_format: str = "direct"
    """"direct" writes shards into vLLM's parameters; "load_weights" hands full tensors to vLLM's own loader."""
    bucket_bytes: int = 64 * 1024 * 1024
    """Size of one transfer bucket while resharding."""
    probe_every: int = 10
    """Steps between comparisons of both engines on a fixed probe; the first reshard is always compared, 0 is only that."""
    probe_tolerance: float | None = None
    """Largest allowed difference in log-prob; by default 1e-4 in fp32, and 0.2 where either engine is in bf16."""
    probe_action: str = "stop"
    """What a larger one leads to, once the tensors that differ are named: "stop" or "warn" (the run goes on)."""

    @property
    def truncates(self) -> bool:
        """Whether tokens are sampled from a part of the vocabulary."""
        return self.top_p < 1 or self.top_k != -1


@dataclass(frozen=True)
class RewardConfig:
    """How responses are scored."""

    name: str = "math"
    """"math", or "path/to/file.py:function" of the user's own."""
    further: list[str] = field(default_factory=list, hash=False)
    """More rewards, named likewise; a response earns the weighted sum of all."""
    weights: list[float] = field(default_factory=list, hash=False)
    """Weight of `name`, then of each further reward; empty: 1 each."""
    pass_threshold: float | None = None
    """A response is right when its reward by `name` reaches this; accuracy and pass@k count such responses. null: 1 for
    "math", while other rewards are no verdicts and have neither."""
    lowest: float | None = None
    """Lower rewards of a function are raised to this and counted in reward/clipped; null: none."""
    highest: float | None = None
    """Higher rewards of a function are lowered to this and counted in reward/clipped; null: none."""
    num_processes: int = 2
    """Grader processes of each reward."""
    timeout_seconds: float = 5.0
    """For one answer; after it the process is killed and the answer scores 0."""
    first_call_timeout_seconds: float = 60.0
    """For the first answer of a process, in which a function may load what it needs."""
    all_failed_action: str = "stop"
    """What follows where a function fails on every response of a step: "stop" or "warn"."""
    special_tokens: bool = False
    """Hands a function the response with its special tokens."""
    max_answer_chars: int = 4096
    """Only this many trailing characters of a response are looked at for the boxed answer."""

    @property
    def names(self) -> list[str]:
        """All rewards, ``name`` first."""
        return [self.name, *self.further]

    @property
    def right_from(self) -> float | None:
        """The reward by ``name`` from which a response is right; None where it is no verdict."""
        return 1.0 if self.pass_threshold is None and self.name == "math" else self.pass_threshold


@dataclass(frozen=True)
class AlgorithmConfig:
    """Advantages, off-policy pressure, KL and aggregation."""

    advantage: str = "grpo"
    """grpo (equation 9), grpo_no_std or dr_grpo, rloo (equation 10), opo, reinforce_plus_plus,
    reinforce_plus_plus_baseline, pass_at_k, remax (generates a greedy response to each prompt too), or a plugin's."""
    advantage_knobs: dict[str, Any] = field(default_factory=dict)
    """Knobs of the advantage, e.g. ``{k: 4}`` for pass_at_k; docs/losses.md lists them."""
    iterations: int = 1
    """Passes over each rollout batch."""
    batch_ratio: int = 1
    """Optimizer steps a pass: mini-batches that a rollout batch is cut into."""
    balance_mini_batches: bool = False
    """Deals prompts so that mini-batches have about equally many tokens, not only equally many prompts."""
    overlong_buffer: int = 0
    """Tokens below data.max_response_length over which a response is punished more and more (DAPO's soft over-long
    punishment); 0 is off."""
    overlong_penalty: float = 1.0
    """What a response of data.max_response_length loses of its reward with an overlong_buffer."""
    mask_truncated: bool = False
    """Leaves responses that hit the length limit out of the loss; their rewards still count for their group."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the frozen starting model; 0 builds no reference."""
    kl_estimator: str = "k3"
    """"k1", "k2", "k3", "abs", or straight-through with the gradient of k2: "k1+", "k3+", "abs+"."""
    kl_in_reward: bool = False
    """Takes the penalty, summed over the tokens of a response, from its reward instead of adding it to the loss."""
    kl_target: float | None = None
    """KL to the starting model, in nats a token, that kl_coef is steered to; by default kl_coef stays what it is."""
    kl_horizon: int = 10000
    """Responses over which a steered kl_coef changes by at most a fifth."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy in what is maximised."""
    loss_aggregation: str = "seq_mean_token_mean"
    """"seq_mean_token_mean" (equation 8 of the paper), "token_mean", "seq_mean_token_sum", or
    "seq_mean_token_sum_norm" (Dr. GRPO)."""
    old_log_probs: str = "recompute"
    """Log-probs of the policy that sampled: "recompute" them by Megatron, or take those of the "rollout"."""
    rollout_correction: RolloutCorrection = field(default_factory=RolloutCorrection)
    weight_lag: int = 0
    """Rollout steps by which the weights that sample are older than the policy in training; as many copies of the weights
    are kept in host memory, and one more while older ones are in use. For experiments: docs/off_policy.md."""
    log_prob_noise: float = 0.0
    """Standard deviation in nats of Gaussian noise on the rollout's log-probs. For experiments, likewise."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps a rollout batch: iterations x batch ratio."""
        return self.iterations * self.batch_ratio


@dataclass(frozen=True)
class PolicyLossConfig:
    """Which policy loss, and where user losses come from; further keys are the chosen loss's own knobs."""

    name: str = "cfpo"
    """A registered loss (``cfpo losses`` lists them), e.g. cfpo, clip or dual_clip, or a plugin's."""
    plugins: list[str] = field(default_factory=list)
    """Importable modules or paths of Python files to load in every process; they may register losses and advantages."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Every knob of the chosen loss, defaults included, filled in while the recipe is loaded: a recipe writes them
    beside ``name``, e.g. ``policy_loss.epsilon``."""


PASS_ACTIONS = ("warn", "stop_passes", "stop")
"""What a limit on an optimizer step may lead to."""
STEP_ACTIONS = ("warn", "stop")
"""What a limit on rollout steps may lead to: when it is looked at, the passes are over."""


@dataclass(frozen=True)
class WatchConfig:
    """Limits, none by default. Actions: "warn" says so and goes on; "stop_passes" leaves out the optimizer steps that
    this rollout has left; "stop" does that too, saves a checkpoint and ends the run with exit code 3.
    """

    kl: float | None = None
    """Largest KL to the policy that sampled in nats a token (`actor/kl_k3`) of an optimizer step: the target KL."""
    kl_action: str = "stop_passes"
    """"warn", "stop_passes" (the optimizer step that shows the KL is the rollout's last) or "stop"."""
    ess: float | None = None
    """Smallest effective sample size as a share (`actor/ess`) of an optimizer step."""
    ess_action: str = "stop_passes"
    """"warn", "stop_passes" or "stop"."""
    non_finite_action: str = "stop"
    """Where a gradient, loss, KL or entropy is not finite: "warn", "stop_passes" or "stop". A step whose gradient is not
    finite is never taken."""
    entropy_slope: float | None = None
    """Nats a rollout step by which `actor/entropy` may fall: the slope of a line through the last `window` steps."""
    entropy_slope_action: str = "warn"
    """"warn" or "stop"."""
    length_drift: float | None = None
    """Share by which the mean response length of the last `window` steps may differ from that of the `window` before."""
    length_drift_action: str = "warn"
    """"warn" or "stop"."""
    zero_reward_streak: int | None = None
    """Rollout steps in a row in which no response earns a reward above 0."""
    zero_reward_streak_action: str = "stop"
    """"warn" or "stop"."""
    window: int = 10
    """Rollout steps that entropy_slope and length_drift look back on."""
    saved_batches: int = 8
    """Batches of steps that crossed a limit to save, the first ones; that of a "stop" is always saved."""
