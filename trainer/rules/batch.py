"""Rules about batches and lengths: groups, mini-batches, curriculum, validation and the model's longest sequence."""

from collections.abc import Iterator

from cfpo_hybrid.models import ModelShape
from trainer.config import Config
from trainer.config.problem import Problem, divisors, listing, nearest_multiples

BATCH = "data.train_batch_size"
RATIO = "algorithm.batch_ratio"
PROMPT = "data.max_prompt_length"
RESPONSE = "data.max_response_length"


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
    if trainer.val_every > 0 and not config.data.val_files:
        yield Problem(
            ("trainer.val_every", "data.val_files"),
            f"trainer.val_every={trainer.val_every}, but data.val_files names no problems; name a file or set it to 0",
        )
    if trainer.val_samples > 1 and trainer.val_temperature == 0:
        yield Problem(
            ("trainer.val_samples", "trainer.val_temperature"),
            f"trainer.val_samples={trainer.val_samples} greedy responses would all be equal; set "
            "trainer.val_temperature above 0 (the CFPO paper has 0.6) or trainer.val_samples=1",
        )


RULES = (mini_batches, curriculum, decoding_room, validation)
MODEL_RULES = (sequence_length,)
