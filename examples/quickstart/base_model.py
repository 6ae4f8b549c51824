"""The base model: Qwen2 at half a million parameters, and its supervised warm-up on worked solutions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from char_tokenizer import END, END_ID, PAD_ID
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

Example = tuple[str, str]
"""A problem and the solution to learn."""
_NOT_COUNTED = -100


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Shape of the model. Heads and key-value heads divide by 2, layers too: every layout of two workers fits."""

    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    max_positions: int = 512


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Supervised training before any reinforcement."""

    steps: int = 600
    batch_size: int = 32
    lr: float = 3e-3
    ramp_steps: int = 20
    weight_decay: float = 0.01


def build_model(size: ModelSize, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A random model in fp32 with tied embeddings for the tokenizer's vocabulary."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            max_position_embeddings=size.max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_ID,
            pad_token_id=PAD_ID,
        )
    )


def warm_up(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    draw: Callable[[], Example],
    plan: WarmUp,
    report: Callable[[int, float], None],
) -> None:
    """Trains on fresh examples; the loss counts the solutions' tokens alone.

    Args:
        model: trained in place.
        tokenizer: whose chat template frames problem and solution.
        draw: gives the next example.
        plan: length and pace.
        report: is told the step, from 1, and its loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, plan))
    model.train()
    for step in range(1, plan.steps + 1):
        inputs, targets = encode_examples(tokenizer, [draw() for _ in range(plan.batch_size)])
        hidden = model.model(input_ids=inputs[:, :-1], use_cache=False).last_hidden_state
        counted = targets[:, 1:] != _NOT_COUNTED
        loss = cross_entropy(model.lm_head(hidden[counted]), targets[:, 1:][counted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    model.eval()


def encode_examples(tokenizer: Qwen2Tokenizer, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Token ids of chats and what to learn of them, ``[examples, width]`` each.

    Padding is on the right, where causal attention never sees it; it and the prompts are not counted.
    """
    chats = [[{"role": "user", "content": problem}] for problem, _ in examples]
    prompts = [str(text) for text in tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)]
    texts = [prompt + solution + END for prompt, (_, solution) in zip(prompts, examples, strict=True)]
    prompt_lengths = torch.tensor([len(ids) for ids in tokenizer(prompts)["input_ids"]])
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    inputs, real = encoded["input_ids"], encoded["attention_mask"].bool()
    assert isinstance(inputs, Tensor)
    counted = real & (torch.arange(inputs.shape[1]) >= prompt_lengths[:, None])
    return inputs, inputs.where(counted, _NOT_COUNTED)


def answer_problems(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: Sequence[str], *, temperature: float = 0.0
) -> list[str]:
    """The model's responses: greedy at temperature 0, otherwise sampled."""
    chats = [[{"role": "user", "content": problem}] for problem in problems]
    prompts = [str(text) for text in tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.inference_mode():
        ids = model.generate(**encoded, max_new_tokens=64, **how)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def _pace(step: int, plan: WarmUp) -> float:
    """Linear ramp, then a cosine down to a fiftieth of the learning rate."""
    ramp = min((step + 1) / plan.ramp_steps, 1.0)
    return ramp * max(0.02, 0.5 * (1 + math.cos(math.pi * step / plan.steps)))
