"""Texts that end a response: the real vLLM samples the same tokens as without them, and no more once one is complete."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_world import char_tokenizer
from gloo import run_gloo
from tiny_model import save_tiny_model, tiny_model
from tokenizers import decoders
from vllm_world import STOP, prompts, sampled_gap, sampling, start_engine

from workers.rollout.engine import Stops

pytestmark = pytest.mark.slow

COLUMNS = ("responses", "response_lengths", "response_mask", "rollout_log_probs", "truncated")


def tokenizer():
    """Writes each of 97 tokens as a text; the model has four more."""
    made = char_tokenizer()
    made.backend_tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return made


def question(folder: Path) -> dict[str, Any]:
    """What is sampled without texts, with them, and with them where a call ignores stops."""
    model, batch, writer = tiny_model("qwen2"), prompts(), tokenizer()
    tokens = writer.convert_ids_to_tokens(list(range(97))) + [""] * 4
    plain_engine = start_engine(folder)
    plain_engine.load_weights(model.state_dict().items())
    plain_engine.finish_update()
    plain = plain_engine.generate(batch, sampling(), 24)
    # Of two characters, so that it lies across tokens; of one; and the text of a special token.
    texts = ["".join(tokens[token] for token in plain["responses"][0, 3:5].tolist()), "e", "<pad>"]
    engine = start_engine(folder, stops=Stops(token_ids=(STOP,), texts=tuple(texts)), tokenizer=writer)
    engine.load_weights(model.state_dict().items())
    engine.finish_update()
    stopped, ignoring = (engine.generate(batch, sampling(ignore_stop=ignore), 24) for ignore in (False, True))
    gap = sampled_gap(model, batch.merge(stopped))
    engine.close()
    answers = {"plain": plain, "stopped": stopped, "ignoring": ignoring}
    columns = {name: {column: each[column].tolist() for column in COLUMNS} for name, each in answers.items()}
    return {**columns, "texts": texts, "tokens": tokens, "gap": gap}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stops-engine")
    save_tiny_model(folder, "qwen2")
    return run_gloo(1, question, folder, timeout=600)[0]


def length_until(tokens: list[str], texts: list[str]) -> int | None:
    """Tokens until one of the texts is complete; None where none is."""
    for length in range(1, len(tokens) + 1):
        if any(text in "".join(tokens[:length]) for text in texts):
            return length
    return None


def test_a_response_ends_with_the_token_that_completes_a_text(facts: dict[str, Any]):
    plain, stopped = facts["plain"], facts["stopped"]
    ended = 0
    for row, length in enumerate(plain["response_lengths"]):
        sampled = plain["responses"][row][:length]
        until = length_until([facts["tokens"][token] for token in sampled], facts["texts"])
        ended += until is not None
        assert stopped["response_lengths"][row] == (until or length)
        assert stopped["responses"][row] == sampled[: until or length] + [0] * (24 - (until or length))
        assert sum(stopped["response_mask"][row]) == (until or length)
        assert stopped["truncated"][row] == (plain["truncated"][row] and until is None)
    assert 4 <= ended < len(plain["response_lengths"])
    assert any(plain["truncated"]) and not all(stopped["truncated"])


def test_log_probs_are_those_of_the_same_tokens(facts: dict[str, Any]):
    assert facts["gap"] < 1e-4
    plain, stopped = (torch.tensor(facts[name]["rollout_log_probs"]) for name in ("plain", "stopped"))
    mask = torch.tensor(facts["stopped"]["response_mask"])
    assert (plain - stopped)[mask].abs().max() < 1e-4
    assert (stopped[~mask] == 0).all()


def test_a_call_may_ignore_them(facts: dict[str, Any]):
    assert facts["ignoring"]["response_lengths"] == [20] * 24


def test_tokens_without_a_text_do_no_harm(facts: dict[str, Any]):
    assert any(token >= 97 for row in facts["stopped"]["responses"] for token in row)
