"""Rules about batches and lengths: groups, mini-batches, curriculum, validation and the model's longest sequence."""

from collections.abc import Iterator

from cfpo_hybrid.models import ModelShape
from trainer.config import Config
from trainer.config.problem import Problem, divisors, listing, nearest_multiples
from trainer.run.validation_names import METRICS_OF_A_SET, SET_NAME

BATCH = "data.train_batch_size"
RATIO = "algorithm.batch_ratio"
PROMPT = "data.max_prompt_length"
RESPONSE = "data.max_response_length"
VAL_FILES = "data.val_files"
VAL_SETS = "data.val_sets"


def mini_batches(config: Config) -> Iterator[Problem]:
    """The prompts of a rollout divide into ``batch_ratio`` mini-batches of whole groups."""
    prompts, ratio = config.data.train_batch_size, config.algorithm.batch_ratio
    if min(prompts, ratio) < 1 or prompts % ratio == 0:
        return
    yield Problem(
        (BATCH, RATIO),
        f"{BATCH}={prompts} (prompts) cannot be divided into {RATIO}={ratio} mini-batches; nearest batch sizes: "
        f"{listing(nearest_multiples(prompts, ratio))}; batch ratios that divide {prompts}: {listing(divisors(prompts))}",
    )


def curriculum(config: Config) -> Iterator[Problem]:
    """The steps of a curriculum are given where levels come in by steps."""
    data, key = config.data, "data.curriculum_steps"
    if data.curriculum == "widen" and data.curriculum_steps == 0:
        yield Problem(
            ("data.curriculum", key),
            f"data.curriculum=widen lets levels in over {key} rollout steps, which is 0; set it, e.g. to half of "
            f"trainer.total_steps={config.trainer.total_steps}",
        )


def decoding_room(config: Config) -> Iterator[Problem]:
    """vLLM schedules at least one token a sequence."""
    rollout = config.rollout
    if 0 < rollout.max_num_batched_tokens < rollout.max_num_seqs:
        key, other = "rollout.max_num_batched_tokens", "rollout.max_num_seqs"
        yield Problem(
            (key, other),
            f"{key}={rollout.max_num_batched_tokens} is less than {other}={rollout.max_num_seqs}, one token a "
            f"sequence; raise the first or lower the second",
        )


def sequence_length(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """Prompt and response fit the model's positions."""
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    longest = shape.max_position_embeddings
    if prompt + response <= longest:
        return
    room = f"with this prompt length the response can have {longest - prompt}" if prompt < longest else "shorten both"
    yield Problem(
        (PROMPT, RESPONSE),
        f"{PROMPT}={prompt} + {RESPONSE}={response} = {prompt + response} tokens, but the model has "
        f"{longest} positions of full attention; {room}",
    )


def validation(config: Config) -> Iterator[Problem]:
    """Validation has problems to look at, and several samples of one only where they can differ."""
    trainer = config.trainer
    if trainer.val_every > 0 and not config.data.validation_sets:
        yield Problem(
            ("trainer.val_every", VAL_FILES, VAL_SETS),
            f"trainer.val_every={trainer.val_every}, but {VAL_FILES} names no problems and {VAL_SETS} has no set; name a "
            f"file or set it to 0",
        )
    if trainer.val_samples > 1 and trainer.val_temperature == 0:
        yield Problem(
            ("trainer.val_samples", "trainer.val_temperature"),
            f"trainer.val_samples={trainer.val_samples} greedy responses would all be equal; set "
            "trainer.val_temperature above 0 (the CFPO paper has 0.6) or trainer.val_samples=1",
        )


def validation_sets(config: Config) -> Iterator[Problem]:
    """Sets have names that are parts of metrics, and the set without a name stands alone."""
    data = config.data
    named = [name for name in data.validation_sets if name]
    if data.val_files and named:
        yield Problem(
            (VAL_FILES, VAL_SETS),
            f"{VAL_FILES}={data.val_files} and {VAL_SETS} with {', '.join(named)} are both given; give those files a name "
            f"too, e.g. {VAL_SETS}.main=[...], and set {VAL_FILES}=null",
        )
    for name in data.val_sets:
        key = f"{VAL_SETS}.{name}"
        if SET_NAME.fullmatch(name) is None:
            yield Problem((key,), f"{VAL_SETS} has the name '{name}'; write letters, digits, - and _, e.g. math500")
        elif name in METRICS_OF_A_SET:
            yield Problem(
                (key,),
                f"{VAL_SETS} has the name '{name}', but val/{name} is a metric of every validation; choose another name",
            )


RULES = (mini_batches, curriculum, decoding_room, validation, validation_sets)
MODEL_RULES = (sequence_length,)
