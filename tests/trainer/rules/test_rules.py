"""Each rule of the configuration: broken once, with the legal values nearby in its message."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_recipe import write_model, write_recipe

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, resolved
from trainer.rules import load_config
from trainer.rules.values import NAMES, RANGES, value_at

BROKEN = {
    "world by tp": (
        ["trainer.num_workers=6", "actor.megatron.tensor_parallel_size=4"],
        ["6 workers cannot be divided", "nearest numbers of workers: 4, 8", "tensor_parallel_size can be 1, 2, 3, 6"],
    ),
    "world by tp x pp": (
        ["trainer.num_workers=6", "actor.megatron.tensor_parallel_size=2", "actor.megatron.pipeline_parallel_size=2"],
        ["= 4 ranks", "nearest numbers of workers: 4, 8"],
    ),
    "world by rollout tp": (
        ["trainer.num_workers=3", "rollout.tensor_parallel_size=2"],
        ["3 workers cannot be divided into vLLM replicas", "it can be 1, 3"],
    ),
    "workers by nodes": (["trainer.num_workers=5", "trainer.nodes=2"], ["nearest numbers of workers: 4, 6"]),
    "nodes x workers a node": (
        ["trainer.num_workers=5", "trainer.nodes=2", "trainer.workers_per_node=4"],
        ["is not trainer.nodes=2 x trainer.workers_per_node=4 = 8", "set it to 8"],
    ),
    "context parallelism": (["actor.megatron.context_parallel_size=2"], ["does not split sequences", "set it to 1"]),
    "sequence parallelism": (
        ["actor.megatron.sequence_parallel=true"],
        ["needs actor.megatron.tensor_parallel_size of at least 2"],
    ),
    "heads by tp": (
        ["trainer.num_workers=3", "actor.megatron.tensor_parallel_size=3"],
        ["4 attention heads", "intermediate size 64", "sizes that fit: 1, 2, 4"],
    ),
    "heads by rollout tp": (
        ["trainer.num_workers=8", "rollout.tensor_parallel_size=8"],
        ["rollout.tensor_parallel_size=8", "4 attention heads", "sizes that fit: 1, 2, 4"],
    ),
    "layers by pp": (
        ["trainer.num_workers=3", "actor.megatron.pipeline_parallel_size=3"],
        [
            "4 layers cannot be cut into 3 pipeline stages",
            "equally: 1, 2, 4",
            "last=2 ",
            "last: actor.megatron.last_stage_layers",
        ],
    ),
    "uneven stages": (
        ["actor.megatron.pipeline_parallel_size=2", "actor.megatron.first_stage_layers=4"],
        ["first=4"],
    ),
    "chunks by stage": (
        ["actor.megatron.pipeline_parallel_size=2", "actor.megatron.virtual_pipeline_parallel_size=4"],
        ["stages of 2 layers cannot be cut into 4 chunks", "chunks that divide every stage: 1, 2"],
    ),
    "chunks of one stage": (
        ["actor.megatron.virtual_pipeline_parallel_size=2"],
        ["for several pipeline stages", "use 1 chunk"],
    ),
    "mini-batches": (
        ["algorithm.batch_ratio=5"],
        ["cannot be divided into algorithm.batch_ratio=5", "nearest batch sizes: 15, 20", "16: 1, 2, 4, 8, 16"],
    ),
    "groups": (["rollout.group_size=1"], ["needs at least 2 responses"]),
    "groups of pass_at_k": (
        ["algorithm.advantage=pass_at_k", "algorithm.advantage_knobs.k=9", "rollout.group_size=8"],
        ["needs at least 9 responses a prompt", "set rollout.group_size=9"],
    ),
    "knobs of the advantage": (
        ["algorithm.advantage_knobs={std_flor: 1.0e-4}"],
        ["algorithm.advantage_knobs.std_flor=0.0001: 'grpo' has no such knob", "did you mean 'std_floor'"],
    ),
    "kl in the reward without kl": (["algorithm.kl_in_reward=true"], ["kl_in_reward=True does nothing at"]),
    "old log-probs": (["algorithm.old_log_probs=vllm"], ["known: recompute, rollout"]),
    "correction": (["algorithm.rollout_correction.mode=tis"], ["use one of off, truncate, mask"]),
    "correction of what needs none": (
        ["algorithm.rollout_correction.reject_upper=1.1", "algorithm.old_log_probs=rollout"],
        ["which is 1 with algorithm.old_log_probs=rollout", "set algorithm.old_log_probs=recompute"],
    ),
    "lag of a whole run": (["algorithm.weight_lag=5"], ["would sample from the starting weights", "a lag below 5"]),
    "noise that nobody reads": (
        ["algorithm.log_prob_noise=0.1"],
        ["policy_loss.name=cfpo does not read", "set algorithm.old_log_probs=rollout, or a mode"],
    ),
    "kl target without kl": (["algorithm.kl_target=0.1"], ["kl_target=0.1 does nothing at"]),
    "kl horizon without a target": (
        ["algorithm.kl_horizon=50"],
        ["kl_horizon=50 does nothing at algorithm.kl_target=None", "set kl_target"],
    ),
    "floor of a constant rate": (
        ["actor.optimizer.min_lr_ratio=0.1"],
        ["min_lr_ratio=0.1 does nothing at", "cosine"],
    ),
    "rounds without groups": (
        ["rollout.generation_rounds=2", "rollout.group_size=1", "algorithm.advantage=remax"],
        ["which at rollout.group_size=1 are all", "set rollout.generation_rounds=1"],
    ),
    "rounds that drop what teaches": (
        ["rollout.generation_rounds=2", "algorithm.advantage=reinforce_plus_plus"],
        ["algorithm.advantage='reinforce_plus_plus' learns from them", "e.g. grpo"],
    ),
    "over-long buffer": (["algorithm.overlong_buffer=64"], ["over the whole of data.max_response_length=64", "12)"]),
    "over-long penalty": (["algorithm.overlong_penalty=0.5"], ["does nothing at algorithm.overlong_buffer=0"]),
    "balance": (
        ["algorithm.balance_mini_batches=true", "algorithm.batch_ratio=1"],
        ["does nothing at algorithm.batch_ratio=1"],
    ),
    "over-long prompts": (["data.overlong=drop"], ["data.overlong='drop'", "known: filter, cut"]),
    "curriculum": (["data.curriculum=orders"], ["did you mean 'order'", "known: none, order, widen"]),
    "curriculum steps": (["data.curriculum=widen"], ["data.curriculum_steps rollout steps, which is 0"]),
    "steps without curriculum": (["data.curriculum_steps=5"], ["does nothing at data.curriculum=none"]),
    "levels": (["data.curriculum=order", "data.level_key=difficulty"], ["has no level there"]),
    "watch action": (["watch.kl_action=halt"], ["watch.kl_action='halt'", "known: warn, stop_passes, stop"]),
    "watch action of a step": (["watch.length_drift_action=stop_passes"], ["known: warn, stop"]),
    "passes to stop": (
        ["watch.kl=0.1", "algorithm.iterations=1", "algorithm.batch_ratio=1"],
        ["watch.kl_action=stop_passes has nothing to stop", "'warn' or 'stop'"],
    ),
    "watch longer than the run": (
        ["watch.length_drift=0.5", "watch.window=3"],
        ["looks back on 6 rollout steps, but trainer.total_steps=5", "lower watch.window"],
    ),
    "top-p": (["rollout.top_p=0.95"], ["rollout.top_p=0.95 truncates sampling", "set rollout.top_p=1.0"]),
    "top-k": (["rollout.top_k=50"], ["rollout.top_k=50 truncates sampling", "set rollout.top_k=-1"]),
    "lengths": (
        ["data.max_response_length=100"],
        ["32 + data.max_response_length=100 = 132 tokens, but the model has 128 positions", "can have 96"],
    ),
    # keys and values of 2 heads of 32 in 4 layers, 4 bytes each: 2,048 a token, 96 tokens
    "cache of a sequence": (
        ["rollout.kv_cache_bytes=196607"],
        ["does not hold one sequence of 96 tokens, which takes 196608 bytes", "set it to some 6291456"],
    ),
    "decoding room": (["rollout.max_num_batched_tokens=8"], ["less than rollout.max_num_seqs=256"]),
    "validation files": (["trainer.val_every=5"], ["data.val_files names no problems and data.val_sets has no set"]),
    "a set and no set": (
        ["data.val_files=${data.train_files[0]}", "data.val_sets.math=${data.train_files[0]}"],
        ["data.val_sets with math are both given", "set data.val_files=null"],
    ),
    "name of a set": (
        ["data.val_sets={math 500: '${data.train_files[0]}'}"],
        ["has the name 'math 500'", "letters, digits, - and _"],
    ),
    "set named as a metric": (
        ["data.val_sets.accuracy=${data.train_files[0]}"],
        ["val/accuracy is a metric of every validation"],
    ),
    "files of a set": (["data.val_sets.math=nowhere.jsonl"], ["data.val_sets.math: data file 'nowhere.jsonl'"]),
    "type of a set": (["data.val_sets.math={a: b}"], ["data.val_sets.math={'a': 'b'} is not a list of texts"]),
    "validation samples": (["trainer.val_samples=4"], ["would all be equal", "trainer.val_temperature above 0"]),
    "advantage": (["algorithm.advantage=grpo_nostd"], ["did you mean 'grpo_no_std'"]),
    "aggregation": (["algorithm.loss_aggregation=token-mean"], ["did you mean 'token_mean'", "seq_mean_token_sum"]),
    "estimator": (["algorithm.kl_estimator=k4"], ["known: k1, k2, k3"]),
    "schedule": (["actor.optimizer.schedule=cosin"], ["did you mean 'cosine'"]),
    "actor dtype": (["actor.dtype=bf16"], ["actor.dtype='bf16'", "known: auto, float32, bfloat16"]),
    "rollout dtype": (["rollout.dtype=half"], ["rollout.dtype='half'"]),
    "attention": (["actor.attention=flash"], ["did you mean 'flash_attn'"]),
    "load format": (["rollout.load_format=load_weight"], ["did you mean 'load_weights'"]),
    "device": (["trainer.device=gpu"], ["known: auto, cpu, cuda"]),
    "offload": (["actor.megatron.offload=true"], ["trainer.device=cpu", "set it false"]),
    "flash attention": (["actor.attention=flash_attn"], ["needs a GPU", "sdpa or auto"]),
    "trackers": (["trainer.trackers=[tensorbord]"], ["did you mean 'tensorboard'"]),
    "data files": (["data.train_files=[nowhere.jsonl]"], ["data.train_files", "nowhere.jsonl"]),
    "data columns": (["data.problem_key=question"], ["question"]),
    "examples that are no mappings": (
        ["data.examples=[a]"],
        ["data.examples=['a'] is not a list of mappings of texts"],
    ),
    "an example without a text": (
        ["data.examples=[{role: user, content: null}]"],
        ["is not a list of mappings of texts"],
    ),
    "a list as an example's text": (["data.examples=[{role: user, content: [a]}]"], ["is not a list of mappings"]),
    "one example": (["data.examples={role: user, content: a}"], ["is not a list of mappings of texts"]),
    "a file of examples": (["data.examples=examples.jsonl"], ["is not a list of mappings of texts"]),
    "keys of examples": (
        ["data.examples=[{from: human, value: a}, {role: assistant, content: b}]"],
        ["message 1 has the keys ['from', 'value']; it must have role and content"],
    ),
    "roles of examples": (
        ["data.examples=[{role: system, content: a}, {role: assistant, content: b}]"],
        ["message 1 has the role 'system', where 'user' must be", "goes into data.system_prompt"],
    ),
    "end of examples": (
        ["data.examples=[{role: user, content: a}]"],
        ["has 1 messages; it must end with the assistant's"],
    ),
    "blank example": (
        ["data.examples=[{role: user, content: a}, {role: assistant, content: ' '}]"],
        ["message 2 has no text as its content"],
    ),
    "rows for a batch": (["data.train_batch_size=20", "algorithm.batch_ratio=1"], ["16 rows, fewer than one batch"]),
    "reward": (["reward.name=maths"], ["did you mean 'math'"]),
    "further reward": (["reward.further=[maths]"], ["reward.further is 'maths'", "did you mean 'math'"]),
    "two rewards of one name": (["reward.further=[math]"], ["reward/math names two rewards"]),
    "weights": (["reward.weights=[1,2]"], ["reward.weights=[1.0, 2.0] must be as many as the rewards, 1"]),
    "bounds of math": (["reward.lowest=0"], ["reward.lowest is for functions of your own"]),
    "failed action": (["reward.all_failed_action=halt"], ["all_failed_action", "halt", "warn"]),
    "reward file": (["reward.name=nowhere.py:score"], ["there is no file", "nowhere.py"]),
    "resume": (["trainer.resume=latest"], ["neither 'auto' nor 'never'"]),
    "model": (["model.path=/no/such/folder"], ["model.path=/no/such/folder: there is no such folder"]),
}


def test_a_reward_function_of_other_arguments_is_a_mistake_of_the_configuration(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def score(response, truth):\n    return 1.0\n")
    words = [f"reward.name={tmp_path}/mine.py:score", "reward.lowest=1", "reward.highest=0"]
    with pytest.raises(ConfigError) as caught:
        load_config(write_recipe(tmp_path), words)
    arity, bounds = caught.value.problems
    assert "takes 2 arguments (response, truth), not 4; it is called as score(problem, response" in arity
    assert "reward.lowest=1.0 must be below reward.highest=0.0" in bounds


def test_examples_of_a_recipe_and_of_the_command_line(tmp_path: Path):
    examples = [{"role": "user", "content": "1+1: what?"}, {"role": "assistant", "content": r"\boxed{2}"}]
    config = load_config(write_recipe(tmp_path), [f"data.examples={json.dumps(examples)}"])
    assert config.data.examples == examples
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved(config)))
    again = load_config(tmp_path / "again.yaml")
    assert again.data.examples == examples
    words = [r"data.examples=[{role: user, content: 1+1}, {role: assistant, content: '\boxed{2}'}]"]
    assert load_config(tmp_path / "again.yaml", words).data.examples == [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": r"\boxed{2}"},
    ]
    assert load_config(tmp_path / "again.yaml", ["data.examples=null"]).data.examples is None


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_the_only_mistake(name: str, tmp_path: Path):
    words, parts = BROKEN[name]
    with pytest.raises(ConfigError) as caught:
        load_config(write_recipe(tmp_path), words)
    assert len(caught.value.problems) == 1, caught.value
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["algorithm.old_log_probs=rollout", "algorithm.log_prob_noise=0.1", "algorithm.weight_lag=4"],
        ["algorithm.rollout_correction={mode: mask, lower: 0.5, upper: 5}", "algorithm.log_prob_noise=0.1"],
        ["algorithm.rollout_correction.mode=truncate", "rollout.top_p=0.9", "rollout.top_k=50"],
    ],
)
def test_pressure_and_correction_that_make_sense_pass(words: list[str], tmp_path: Path):
    load_config(write_recipe(tmp_path), words)


def test_kv_heads_may_be_fewer_than_ranks(tmp_path: Path):
    """2 key-value heads over 4 ranks: Megatron gathers them, vLLM holds each twice."""
    words = ["trainer.num_workers=4", "actor.megatron.tensor_parallel_size=4", "rollout.tensor_parallel_size=4"]
    load_config(write_recipe(tmp_path), words)


def test_uneven_stages_that_add_up_pass(tmp_path: Path):
    words = ["actor.megatron.pipeline_parallel_size=2", "actor.megatron.first_stage_layers=1"]
    load_config(write_recipe(tmp_path), words)


def test_a_head_size_that_vllm_lacks_on_a_cpu(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    write_model(tmp_path / "model", hidden_size=64)
    with pytest.raises(ConfigError, match=r"size 16, which .* 32, 64, 80"):
        load_config(recipe, [])


MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.num_workers=2", "actor.megatron.expert_parallel_size=4"], r"2 ranks of a .* stage .* can be 1, 2"),
        (
            ["trainer.num_workers=4", "actor.megatron.expert_parallel_size=4"],
            "6 experts per layer; sizes that do: 1, 2, 3, 6",
        ),
        (["actor.megatron.tensor_parallel_size=2"], "needs actor.megatron.sequence_parallel=true"),
        (["trainer.num_workers=4", "rollout.tensor_parallel_size=4"], "16 of its 64 rows, .* multiples of 32"),
    ],
)
def test_experts(words: list[str], message: str, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    write_model(tmp_path / "model", model_type="qwen3_moe", **MIXTURE)
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, words)
    load_config(recipe, ["trainer.num_workers=2", "actor.megatron.expert_parallel_size=2"])


def test_vllms_padded_vocabulary_divides_too(tmp_path: Path):
    """6 heads divide by 3, but 100 tokens padded to 128 do not."""
    recipe, sizes = write_recipe(tmp_path), {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 192}
    write_model(tmp_path / "model", **sizes, intermediate_size=96)
    with pytest.raises(
        ConfigError, match="100 to 128 rows, which do not divide by tensor parallel size 3; use a power"
    ):
        load_config(recipe, ["trainer.num_workers=3", "rollout.tensor_parallel_size=3"])
    load_config(recipe, ["trainer.num_workers=3", "actor.megatron.tensor_parallel_size=3"])


def test_a_dense_model_has_no_experts_to_spread(tmp_path: Path):
    with pytest.raises(ConfigError, match="qwen2 models have none, set it to 1"):
        load_config(write_recipe(tmp_path), ["actor.megatron.expert_parallel_size=2"])


@pytest.mark.parametrize("word", ["actor.megatron.offload=true", "actor.attention=flash_attn"])
def test_auto_is_a_cpu_where_there_is_no_gpu(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = write_recipe(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.device=auto finds none on this machine"):
        load_config(recipe, ["trainer.device=auto", word])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_config(recipe, ["trainer.device=auto", word])


def test_bfloat16_is_allowed_on_a_cpu(tmp_path: Path):
    load_config(write_recipe(tmp_path), ["actor.dtype=bfloat16"])


@pytest.mark.parametrize(
    "word",
    [
        "actor.lr=0",
        "actor.lr=-1e-6",
        "actor.lr=.nan",
        "rollout.temperature=0",
        "algorithm.iterations=0",
        "algorithm.kl_coef=-0.1",
        "algorithm.weight_lag=-1",
        "algorithm.rollout_correction.upper=0",
        "actor.optimizer.warmup_ratio=1.5",
        "actor.optimizer.adam_beta2=1",
        "rollout.gpu_memory_utilization=1",
        "trainer.total_steps=0",
        "trainer.save_every=-1",
        "trainer.num_workers=0",
        "trainer.seed=9223372036854775808",
        "reward.timeout_seconds=0",
        "rollout.generation_rounds=0",
        "watch.ess=1",
        "watch.window=1",
    ],
)
def test_numbers_out_of_range(word: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(write_recipe(tmp_path), [word])
    key = word.partition("=")[0]
    assert [problem for problem in caught.value.problems if problem.startswith(f"{key}=") and " must be " in problem]


def test_every_range_is_about_a_number_that_exists():
    config = Config()
    for key, allowed in RANGES.items():
        value = value_at(config, key)
        assert value is None or allowed.holds(value), f"the default of {key} breaks its own range"


def test_every_name_is_a_known_one_by_default():
    config = Config()
    assert [key for key, names in NAMES.items() if value_at(config, key) not in names] == []


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_rounds_of_generation_are_for_advantages_that_learn_nothing_from_equal_rewards(name: str, tmp_path: Path):
    words = ["rollout.generation_rounds=2", f"algorithm.advantage={name}"]
    if name in ("reinforce_plus_plus", "remax"):
        with pytest.raises(ConfigError, match="learns from them"):
            load_config(write_recipe(tmp_path), words)
    else:
        load_config(write_recipe(tmp_path), words)
