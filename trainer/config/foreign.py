"""Words of other trainers (verl, TRL, OpenRLHF, slime, NeMo-RL) and ours: what wrong keys and names are answered with.

``docs/configuration.md`` has the same table. To add a word: put it into the row of its meaning, or add a row.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

Carry = Callable[[Any], Any]
"""Our value for theirs; None where there is none."""


def same(value: Any) -> Any:
    """The same value."""
    return value


def interval(value: Any) -> Any:
    """Steps between two of something: what is below 1 means never, which is 0 here."""
    return max(0, value) if isinstance(value, int) else None


def trackers(value: Any) -> Any:
    """Those of the logs that are trackers here: the terminal and metrics.jsonl need no asking for."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if name in ("tensorboard", "wandb", "mlflow", "trackio")]


def dashes(value: Any) -> Any:
    """``seq-mean-token-mean`` with underscores."""
    return value.replace("-", "_") if isinstance(value, str) else None


def chosen(**ours: Any) -> Carry:
    """Our value for each of theirs, which are written as texts: ``chosen(false="never")``."""
    return lambda value: ours.get(str(value).lower())


@dataclass(frozen=True, slots=True)
class Foreign:
    """Keys of other trainers that mean the same.

    Args:
        words: theirs, without the sections that the meaning does not depend on.
        keys: ours; none where there is nothing to set.
        note: where the meaning differs, or what stands in its place.
        carry: our value for theirs; None where it does not follow from theirs alone.
    """

    words: tuple[str, ...]
    keys: tuple[str, ...]
    note: str = ""
    carry: Carry | None = None

    def answer(self, value: Any, written: str | None = None) -> str:
        """What to write in the place of their key, as the end of a sentence about it.

        Args:
            value: theirs.
            written: the value as it was written, where that is known.
        """
        note = f" ({self.note})" if self.note else ""
        if not self.keys:
            return f"{self.note}; leave it out"
        ours = self.carry(value) if self.carry is not None else None
        if ours is None:
            return f"here it is {' and '.join(self.keys)}{note}"
        text = written if written is not None and ours == value else shown(ours)
        return f"here it is {' '.join(f'{key}={text}' for key in self.keys)}{note}"


def shown(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _row(words: str, keys: str, note: str = "", carry: Carry | None = None) -> Foreign:
    return Foreign(words=tuple(words.split()), keys=tuple(keys.split()), note=note, carry=carry)


TRL_STEPS = "counted in rollout steps, in TRL in optimizer steps"

FOREIGN: tuple[Foreign, ...] = (
    _row("hf_checkpoint model_name model_name_or_path pretrain", "model.path", carry=same),
    _row("model_revision", "model.revision", carry=same),
    _row(
        "dataset_config dataset_name train_data_path",
        "data.train_files",
        "files, or hub:NAME:SPLIT and hub:NAME:CONFIG:SPLIT",
    ),
    _row("prompt_data", "data.train_files", carry=same),
    _row("eval_dataset eval_prompt_data val_data_path", "data.val_files", "files, or hub:NAME:SPLIT"),
    _row("input_key prompt_key", "data.problem_key", carry=same),
    _row("label_key", "data.answer_key", carry=same),
    _row("num_prompts_per_step rollout_batch_size", "data.train_batch_size", "prompts", same),
    _row(
        "generation_batch_size global_batch_size gradient_accumulation_steps per_device_train_batch_size steps_per_generation",
        "data.train_batch_size algorithm.batch_ratio",
        "prompts of a rollout, and the optimizer steps that one pass over it makes",
    ),
    _row(
        "generate_max_len max_completion_length max_new_tokens response_length rollout_max_response_len",
        "data.max_response_length",
        carry=same,
    ),
    _row("prompt_length prompt_max_len rollout_max_prompt_len", "data.max_prompt_length", carry=same),
    _row(
        "filter_overlong_prompts truncation",
        "data.overlong",
        '"filter" leaves long prompts out, "cut" keeps their last tokens',
    ),
    _row("n n_samples_per_prompt num_generations num_generations_per_prompt", "rollout.group_size", carry=same),
    _row(
        "dynamic_filtering dynamic_sampling filter_groups.enable use_dynamic_sampling",
        "rollout.generation_rounds",
        "the rounds that a step may take; 1 is off",
    ),
    _row("dynamic_sampling_max_gen_batches filter_groups.max_num_gen_batches", "rollout.generation_rounds", carry=same),
    _row(
        "rollout.tensor_model_parallel_size rollout_num_gpus_per_engine vllm_tensor_parallel_size",
        "rollout.tensor_parallel_size",
        carry=same,
    ),
    _row("vllm_gpu_memory_utilization", "rollout.gpu_memory_utilization", carry=same),
    _row("inference_engine rollout.mode rollout.name use_vllm vllm_mode", "", "vLLM always generates"),
    _row("free_cache_engine vllm_enable_sleep", "", "vLLM always sleeps while the actor trains"),
    _row(
        "adv_estimator advantage_estimator",
        "algorithm.advantage",
        carry=lambda value: ours_for("algorithm.advantage", value) or value,
    ),
    _row(
        "grpo_std_normalization norm_adv_by_std_in_grpo scale_rewards",
        "algorithm.advantage",
        "with the standard deviation of the group grpo, without it grpo_no_std",
        chosen(false="grpo_no_std", none="grpo_no_std", true="grpo", group="grpo"),
    ),
    _row(
        "max_epochs num_iterations num_ppo_epochs ppo_epochs", "algorithm.iterations", "passes over each rollout", same
    ),
    _row(
        "mini_batch_size ppo_mini_batch_size train_global_batch_size",
        "algorithm.batch_ratio",
        "data.train_batch_size divided by it",
    ),
    _row("overlong_buffer.len overlong_buffer_len", "algorithm.overlong_buffer", carry=same),
    _row("overlong_buffer.penalty_factor overlong_penalty_factor", "algorithm.overlong_penalty", carry=same),
    _row("mask_truncated_completions overlong_filtering", "algorithm.mask_truncated", carry=same),
    _row("beta init_kl_coef kl_ctrl.kl_coef kl_loss_coef reference_policy_kl_penalty", "algorithm.kl_coef", carry=same),
    _row("use_kl_loss", "algorithm.kl_coef", "above 0 the KL is a term of the loss; 0 is off"),
    _row("use_kl_in_reward", "algorithm.kl_in_reward", "with kl_coef above 0", same),
    _row(
        "kl_loss_type kl_penalty",
        "algorithm.kl_estimator",
        carry=lambda value: ours_for("algorithm.kl_estimator", value) or value,
    ),
    _row("kl_ctrl.target_kl", "algorithm.kl_target", "in nats a token", same),
    _row("kl_ctrl.horizon", "algorithm.kl_horizon", "in responses", same),
    _row("entropy_coeff entropy_loss_coef", "algorithm.entropy_coef", carry=same),
    _row("loss_agg_mode", "algorithm.loss_aggregation", carry=dashes),
    _row("token_level_loss", "algorithm.loss_aggregation", carry=chosen(true="token_mean")),
    _row(
        "loss_type",
        "algorithm.loss_aggregation",
        "losses that have a name in TRL are names of policy_loss.name",
        lambda value: ours_for("algorithm.loss_aggregation", value),
    ),
    _row(
        "bypass_mode use_rollout_log_probs use_rollout_logprobs",
        "algorithm.old_log_probs",
        carry=chosen(true="rollout", false="recompute"),
    ),
    _row(
        "enable_vllm_is_correction rollout_is use_tis vllm_importance_sampling_correction",
        "algorithm.rollout_correction.mode",
        '"off", "truncate" or "mask"',
    ),
    _row(
        "rollout_is_threshold tis_imp_ratio_cap vllm_importance_sampling_cap",
        "algorithm.rollout_correction.upper",
        "with a mode of algorithm.rollout_correction",
        same,
    ),
    _row("critic gamma lam lambd", "", "there is no critic, no discount and no GAE here"),
    _row("loss_mode", "policy_loss.name", carry=lambda value: ours_for("policy_loss.name", value) or value),
    _row("importance_sampling_level", "policy_loss.name", carry=chosen(sequence="gspo")),
    _row(
        "clip_ratio cliprange eps_clip epsilon",
        "policy_loss.clip_low policy_loss.clip_high",
        "knobs of the losses that clip; cfpo has policy_loss.epsilon",
        same,
    ),
    _row(
        "clip_ratio_low eps_clip_low epsilon_low ratio_clip_min",
        "policy_loss.clip_low",
        "a knob of losses that clip",
        same,
    ),
    _row(
        "clip_ratio_high eps_clip_high epsilon_high ratio_clip_max",
        "policy_loss.clip_high",
        "a knob of losses that clip",
        same,
    ),
    _row(
        "clip_ratio_c delta eps_clip_c ratio_clip_c", "policy_loss.dual_clip", "with policy_loss.name=dual_clip", same
    ),
    _row("clip_cov_ratio kl_cov_ratio", "policy_loss.ratio", "of clip_cov and kl_cov", same),
    _row("actor_learning_rate learning_rate optim.lr", "actor.lr", carry=same),
    _row(
        "log_prob_micro_batch_size_per_gpu micro_batch_size micro_train_batch_size ppo_micro_batch_size "
        "ppo_micro_batch_size_per_gpu train_micro_batch_size",
        "actor.micro_batch_tokens",
        "counted in tokens, not in rows",
    ),
    _row(
        "log_prob_max_token_len_per_gpu max_tokens_per_gpu ppo_max_token_len_per_gpu",
        "actor.micro_batch_tokens",
        carry=same,
    ),
    _row("bf16", "actor.dtype", carry=chosen(true="bfloat16", false="float32")),
    _row("attn_implementation", "actor.attention", carry=lambda value: ours_for("actor.attention", value) or value),
    _row(
        "megatron.tensor_model_parallel_size tensor_model_parallel_size",
        "actor.megatron.tensor_parallel_size",
        "vLLM's is rollout.tensor_parallel_size",
        same,
    ),
    _row("pipeline_model_parallel_size", "actor.megatron.pipeline_parallel_size", carry=same),
    _row("virtual_pipeline_model_parallel_size", "actor.megatron.virtual_pipeline_parallel_size", carry=same),
    _row("expert_model_parallel_size", "actor.megatron.expert_parallel_size", carry=same),
    _row("enable_gradient_checkpointing gradient_checkpointing", "actor.megatron.recompute", carry=same),
    _row(
        "adam_offload grad_offload optimizer_offload param_offload",
        "actor.megatron.offload",
        "weights and optimizer state together",
        same,
    ),
    _row("grad_clip max_grad_norm max_norm", "actor.optimizer.clip_grad", carry=same),
    _row("lr_warmup_ratio lr_warmup_steps_ratio", "actor.optimizer.warmup_ratio", carry=same),
    _row(
        "lr_warmup_iters lr_warmup_steps warmup_steps", "actor.optimizer.warmup_ratio", "a share of all optimizer steps"
    ),
    _row(
        "lr_decay_style lr_scheduler lr_scheduler_type warmup_style",
        "actor.optimizer.schedule",
        '"constant" or "cosine"',
        chosen(constant="constant", constant_with_warmup="constant", cosine="cosine"),
    ),
    _row(
        "custom_reward_function.path custom_rm_path remote_rm_url reward_funcs rm_type",
        "reward.name",
        '"math", or path/to/file.py:function',
    ),
    _row("reward_weights", "reward.weights", carry=same),
    _row("reward_manager", "", "reward.name is all that scores"),
    _row("actor_num_nodes nnodes num_nodes", "trainer.nodes", carry=same),
    _row(
        "actor_num_gpus_per_node gpus_per_node n_gpus_per_node num_gpus_per_node",
        "trainer.workers_per_node",
        carry=same,
    ),
    _row("max_num_steps num_rollout total_training_steps", "trainer.total_steps", carry=same),
    _row("max_steps", "trainer.total_steps", TRL_STEPS),
    _row(
        "max_num_epochs num_episodes num_epoch num_train_epochs total_epochs",
        "trainer.total_steps",
        "rollout steps: epochs x problems / data.train_batch_size",
    ),
    _row("checkpoint_dir default_local_dir output_dir save_path", "trainer.run_dir", carry=same),
    _row("experiment_name wandb_run_name", "trainer.run_name", "for trackers; the folder is trainer.run_dir", same),
    _row("wandb_group", "trainer.run_group", carry=same),
    _row(
        "load_checkpoint_path resume_from_checkpoint resume_from_path resume_mode",
        "trainer.resume",
        '"auto", "never" or a checkpoint folder',
        chosen(auto="auto", disable="never", true="auto", false="never"),
    ),
    _row("save_freq save_interval save_period", "trainer.save_every", carry=interval),
    _row("save_steps", "trainer.save_every", TRL_STEPS),
    _row("max_actor_ckpt_to_keep max_ckpt_num save_total_limit", "trainer.keep_checkpoints", carry=interval),
    _row("eval_interval test_freq val_period", "trainer.val_every", carry=interval),
    _row("eval_steps", "trainer.val_every", TRL_STEPS),
    _row("eval_on_start val_at_start", "trainer.val_before_train", carry=same),
    _row("eval_temperature val_kwargs.temperature", "trainer.val_temperature", carry=same),
    _row("val_kwargs.do_sample", "trainer.val_temperature", "0 is greedy"),
    _row("val_kwargs.top_p", "trainer.val_top_p", carry=same),
    _row("val_kwargs.n", "trainer.val_samples", carry=same),
    _row("logger report_to", "trainer.trackers", "metrics.jsonl and the terminal need no asking for", trackers),
    _row("project_name wandb_project", "trainer.project", carry=same),
    _row("log_completions log_val_generations", "trainer.generations_every", "steps between saved generations"),
)

ADVANTAGES_OF_GRPO = "the loss of GRPO; its advantages are algorithm.advantage=grpo"

FOREIGN_VALUES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "policy_loss.name": {
        "bnpo": ("clip", "with algorithm.loss_aggregation=token_mean"),
        "dapo": ("clip_higher", "with algorithm.loss_aggregation=token_mean"),
        "dr_grpo": (
            "clip",
            "with algorithm.advantage=dr_grpo algorithm.loss_aggregation=seq_mean_token_sum_norm",
        ),
        "geo_mean": ("gmpo", ""),
        "gpg": ("policy_gradient", ""),
        "grpo": ("clip", ADVANTAGES_OF_GRPO),
        "ppo": ("clip", "verl's default has a second bound: dual_clip"),
        "regular": ("clip", ""),
        "reinforce": ("policy_gradient", ""),
        "reinforce_plus_plus": ("clip", "with algorithm.advantage=reinforce_plus_plus"),
        "rloo": ("policy_gradient", "with algorithm.advantage=rloo"),
        "vanilla": ("dual_clip", ""),
    },
    "algorithm.advantage": {
        "drgrpo": ("dr_grpo", ""),
        "gae": ("grpo", "there is no critic, and so no GAE"),
        "group_norm": ("grpo", ""),
        "grpo_passk": ("pass_at_k", ""),
        "grpo_vectorized": ("grpo", ""),
        "ppo": ("grpo", "there is no critic, and so no GAE"),
        "reinforce": ("reinforce_plus_plus", ""),
        "reinforce_baseline": ("reinforce_plus_plus_baseline", ""),
        "rloo_vectorized": ("rloo", ""),
    },
    "algorithm.kl_estimator": {"kl": ("k1", ""), "low_var_kl": ("k3", ""), "mse": ("k2", "")},
    "algorithm.loss_aggregation": {
        "bnpo": ("token_mean", ""),
        "dapo": ("token_mean", ""),
        "dr_grpo": ("seq_mean_token_sum_norm", ""),
        "grpo": ("seq_mean_token_mean", ""),
    },
    "actor.attention": {"eager": ("sdpa", ""), "flash_attention_2": ("flash_attn", "")},
    "actor.dtype": {"bf16": ("bfloat16", ""), "fp32": ("float32", "")},
    "rollout.dtype": {"bf16": ("bfloat16", ""), "fp32": ("float32", "")},
    "trainer.device": {"gpu": ("cuda", "")},
}
"""By key: what others call a value, what it is here, and in which way it differs."""

NO_CRITIC = "critic"
"""A section of others that has nothing in common with ours, whatever its keys are called."""

_BY_WORD = {word: row for row in FOREIGN for word in row.words}


def foreign_key(key: str, ours: Container[str]) -> Foreign | None:
    """The row of a key that others have, whatever sections it stands in; None where nobody has it.

    Args:
        key: dotted, e.g. ``actor_rollout_ref.actor.optim.lr``.
        ours: the last names of our keys, which are misplaced rather than foreign unless a section tells them apart.
    """
    parts = key.split(".")
    if parts[0] == NO_CRITIC:
        return _BY_WORD[NO_CRITIC]
    for first in range(len(parts)):
        word = ".".join(parts[first:])
        if word in _BY_WORD and (first < len(parts) - 1 or word not in ours):
            return _BY_WORD[word]
    return None


def ours_for(key: str, value: Any) -> str | None:
    """Our name for a value that others give a key; None where nobody does."""
    return FOREIGN_VALUES.get(key, {}).get(str(value).lower().replace("-", "_"), (None, ""))[0]


def name_hint(key: str, value: str) -> str:
    """The end of a message about an unknown name that others have, e.g. ``"; here ppo is clip"``; else nothing."""
    name, note = FOREIGN_VALUES.get(key, {}).get(value.lower().replace("-", "_"), ("", ""))
    return f"; here '{value}' is {key}={name}{f' ({note})' if note else ''}" if name else ""
