"""One GRPO step of TRL's trainer on a CPU; run by bench_step.py with the interpreter of the peer's own environment.

Prints one JSON line: seconds of each step after the warm-up. The model, the prompts and the lengths are those of
bench_step.py: Qwen2 shape, hidden 256, 6 layers, vocabulary 256, 64 prompts x 4, 32 + exactly 128 tokens, one iteration.
"""

import argparse
import json
import random
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, VOCAB = 64, 4, 32, 128, 256


def make_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t2")


class StepClock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = random.Random(0)
    prompts = [" ".join(f"t{rng.randrange(3, VOCAB)}" for _ in range(PROMPT_TOKENS)) for _ in range(PROMPTS * 8)]
    with tempfile.TemporaryDirectory() as directory:
        settings = GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=PROMPTS * GROUP // options.micro_batch,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            max_steps=options.steps + 1,
            learning_rate=1e-5,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        clock = StepClock()
        trainer = GRPOTrainer(
            model=make_model(),
            processing_class=make_tokenizer(),
            reward_funcs=lambda completions, **_: [rng.random() for _ in completions],
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            callbacks=[clock],
        )
        trainer.train()
    steps = [end - begin for begin, end in zip(clock.times, clock.times[1:], strict=False)]
    print(json.dumps({"peer": "trl", "micro_batch": options.micro_batch, "seconds": steps}))


if __name__ == "__main__":
    main()
