"""Rules about the machine: what a CPU cannot do (bfloat16 works on both), and whether the files of a run are there."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cfpo_hybrid.errors import DataError, ModelError, RewardError
from cfpo_hybrid.models import ModelShape
from trainer.check.memory import BYTES, Device, kv_token_bytes, longest_sequence
from trainer.config import Config, DataConfig
from trainer.config.model import check_tokenizer
from trainer.config.problem import Problem, listing
from trainer.data.chat import chat_template, prompt_warnings
from trainer.data.inspect import inspect_files
from trainer.rules.values import find_example_problems
from workers.megatron.hf_files import check_weights
from workers.reward.scorers import RESERVED, reward_label
from workers.reward.user_function import MATH, find_reward
from workers.tokenizer import read_tokenizer

DEVICE = "trainer.device"
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM 0.32's attention on a CPU."""
CPU_EXPERT_SIZE = 32
"""What the intermediate size of an expert on a rank must be a multiple of in vLLM 0.32 on a CPU."""

SCRIPTS = {
    "outputs/math": "examples/qwen2.5_math/prepare_math.py",
    "outputs/quickstart/world": "examples/quickstart/make_world.py",
}
"""What makes the files of the examples, by the folder in which a recipe looks for them."""

SEQUENCES_AT_A_TIME = 32
"""What a KV cache that is too small is advised to hold."""


def offload(config: Config) -> Iterator[Problem]:
    """Host memory is where a CPU run already is."""
    if config.actor.megatron.offload and _on_cpu(config):
        key = "actor.megatron.offload"
        yield Problem(
            (key, DEVICE), f"{key}=true moves state from a GPU to host memory, but {_no_gpu(config)}; set it false"
        )


def attention(config: Config) -> Iterator[Problem]:
    """flash-attn and torch's varlen kernels are CUDA's."""
    key, value = "actor.attention", config.actor.attention
    if _on_cpu(config) and value in ("flash_attn", "torch_varlen"):
        yield Problem((key, DEVICE), f"{key}={value} needs a GPU, but {_no_gpu(config)}; set {key}=sdpa or auto")


def expert_size(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """vLLM's experts on a CPU are padded to multiples of 32 on each rank, where they cannot be written."""
    if not _on_cpu(config) or shape.experts is None:
        return
    key, tp = "rollout.tensor_parallel_size", max(config.rollout.tensor_parallel_size, 1)
    share, rest = divmod(shape.experts.intermediate_size, tp)
    if rest == 0 and share % CPU_EXPERT_SIZE:
        yield Problem(
            (DEVICE, "model.path", key),
            f"{key}={tp} leaves each expert {share} of its {shape.experts.intermediate_size} rows, but vLLM's experts on "
            f"a CPU need multiples of {CPU_EXPERT_SIZE}: lower it, take another model, or a GPU",
        )


def head_size(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """vLLM's attention kernels on a CPU know a few head sizes."""
    if _on_cpu(config) and shape.head_dim not in CPU_HEAD_SIZES:
        yield Problem(
            (DEVICE, "model.path"),
            f"the model's heads have size {shape.head_dim}, which vLLM's attention on a CPU lacks; it has "
            f"{listing(CPU_HEAD_SIZES)}: take another model, or a GPU",
        )


def kv_cache(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """vLLM refuses a cache that does not hold one sequence of the greatest length; on a GPU it takes what is left."""
    key, tp, longest = "rollout.kv_cache_bytes", config.rollout.tensor_parallel_size, longest_sequence(config)
    known = {config.rollout.dtype, config.actor.dtype} <= {"auto", *BYTES}
    if not _on_cpu(config) or not known or tp < 1:
        return
    needed = longest * kv_token_bytes(config, shape, Device(is_gpu=False, bytes=0))
    if 0 < config.rollout.kv_cache_bytes < needed:
        yield Problem(
            (key, "data.max_prompt_length", "data.max_response_length"),
            f"{key}={config.rollout.kv_cache_bytes} does not hold one sequence of {longest} tokens, which takes {needed} "
            f"bytes; set it to some {needed * SEQUENCES_AT_A_TIME} (for {SEQUENCES_AT_A_TIME} at a time), or shorten "
            f"prompts or responses",
        )


def data_files(config: Config) -> Iterator[Problem]:
    """Data files exist and have their columns, and there are problems enough for one batch."""
    yield from _files(config.data, training=True)


def evaluation_files(config: Config) -> Iterator[Problem]:
    """Of an evaluation, which has nothing to train on."""
    yield from _files(config.data, training=False)


def _files(data: DataConfig, *, training: bool) -> Iterator[Problem]:
    files = [*data.train_files, *(file for files in data.validation_sets.values() for file in files)]
    for problem in inspect_files(data, training=training):
        missing = (file for file in files if file in problem.message and not Path(file).exists())
        hint = next(map(made_by, missing), "")
        yield replace(problem, message=f"{problem.message}{hint}")


def made_by(path: str) -> str:
    """The end of a message about a missing file: the script of the examples that makes it, where there is one."""
    script = next((script for folder, script in SCRIPTS.items() if f"/{folder}/" in f"/{path}/"), None)
    return f"; `python {script}` makes it" if script else ""


def reward(config: Config) -> Iterator[Problem]:
    """Rewards are built in, or functions in files that can be called; each has a weight and a name of its own."""
    settings = config.reward
    keys = ["reward.name", *["reward.further"] * len(settings.further)]
    for key, name in zip(keys, settings.names, strict=True):
        try:
            find_reward(name, key)
        except RewardError as error:
            yield Problem((key,), str(error))
    labels = [reward_label(name) for name in settings.names]
    if settings.further:
        for label in sorted({label for label in labels if labels.count(label) > 1 or label in RESERVED}):
            problem = "names two rewards" if labels.count(label) > 1 else "is a metric of every run"
            yield Problem(("reward.further",), f"reward/{label} {problem}; give the function another name in its file")
    if settings.weights and len(settings.weights) != len(labels):
        yield Problem(
            ("reward.weights",),
            f"reward.weights={settings.weights} must be as many as the rewards, {len(labels)}: first that of reward.name, "
            f"then those of reward.further; leave them out for 1 each",
        )
    if not all(map(math.isfinite, settings.weights)):
        yield Problem(("reward.weights",), f"reward.weights={settings.weights} must be finite numbers")
    if settings.lowest is not None and settings.highest is not None and settings.lowest >= settings.highest:
        yield Problem(
            ("reward.lowest", "reward.highest"),
            f"reward.lowest={settings.lowest} must be below reward.highest={settings.highest}",
        )
    functions = [name for name in settings.names if name != MATH]
    for key in ("lowest", "highest", "special_tokens"):
        value = vars(settings)[key]
        if not functions and value is not None and value is not False:
            yield Problem(
                (f"reward.{key}",),
                f"reward.{key} is for functions of your own, and reward.name={MATH} is none; leave it out",
            )


def resume(config: Config) -> Iterator[Problem]:
    """``auto``, ``never``, or a checkpoint folder that exists."""
    key, value = "trainer.resume", config.trainer.resume
    if value not in ("auto", "never") and not Path(value).is_dir():
        yield Problem((key,), f"{key}={value} is neither 'auto' nor 'never' nor a checkpoint folder that exists")


def model_files(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """Weights and tokenizer of a local folder are whole and fit its config.json; an id's are looked at once fetched."""
    key, folder = "model.path", Path(config.model.path).expanduser()
    if not folder.is_dir():
        return
    for check in (lambda: check_weights(folder, shape), lambda: check_tokenizer(config.model, folder, shape)):
        try:
            check()
        except ModelError as error:
            yield Problem((key,), f"{key}={config.model.path}: {error}")


def chats(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """The chat template renders a small chat, and knows its arguments; that of an id is looked at once fetched."""
    folder, own = Path(config.model.path).expanduser(), config.data.chat_template
    if not folder.is_dir() or config.model.trust_remote_code or (own is not None and not Path(own).is_file()):
        return
    if any(find_example_problems(config)):
        return  # a template may stumble over them
    keys = ("model.path", "data.chat_template", "data.system_prompt", "data.chat_template_kwargs")
    try:
        chat_template(config.data, read_tokenizer(folder))
    except DataError as error:
        yield Problem(keys, str(error))
    except ModelError:
        return  # said with the other files


def warnings_of(config: Config) -> list[str]:
    """What is probably not meant in a configuration without mistakes; nothing of an id, which is looked at once fetched."""
    folder = Path(config.model.path).expanduser()
    if not folder.is_dir() or config.model.trust_remote_code:
        return []
    return prompt_warnings(folder, config.data, config.rollout.stop)


def _no_gpu(config: Config) -> str:
    return f"{DEVICE}=cpu" if config.trainer.device == "cpu" else f"{DEVICE}=auto finds none on this machine"


def _on_cpu(config: Config) -> bool:
    return config.trainer.device == "cpu" or (config.trainer.device == "auto" and not torch.cuda.is_available())


RULES = (offload, attention)
MODEL_RULES = (head_size, expert_size, kv_cache)
FILE_RULES = (data_files, reward, resume)
MODEL_FILE_RULES = (model_files, chats)
"""`cfpo check` goes on without what these and those above ask for: its arithmetic does not depend on files."""
