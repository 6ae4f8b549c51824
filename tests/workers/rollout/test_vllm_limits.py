"""What an engine does when a batch is larger than its limits: as much at a time as fits, and the same responses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from tiny_model import save_tiny_model, tiny_model
from vllm_world import MAX_LEN, log_probs_of, sampling, start_engine

from cfpo_hybrid.protocol import DataProto

pytestmark = pytest.mark.slow

GROUPS, GROUP_SIZE, LONGEST = 6, 4, 150
NEW_TOKENS = 60
CACHE_TOKEN_BYTES = 4 * 2 * 2 * 32 * 4
"""Layers x (keys and values) x heads x head size x fp32 of the tiny model."""

LIMITS: dict[str, dict[str, Any]] = {
    "roomy": {"max_num_seqs": 64},
    "budget of a few prompts": {"max_num_batched_tokens": 400, "enable_prefix_caching": False},
    "budget below one sequence": {"max_num_batched_tokens": 1},
    "three sequences at a time": {"max_num_seqs": 3},
    "one sequence at a time": {"max_num_seqs": 1, "max_num_batched_tokens": 1},
    "cache of a few sequences": {"kv_cache_bytes": 1024 * CACHE_TOKEN_BYTES, "enable_prefix_caching": False},
    "all at once": {
        "kv_cache_bytes": 1024 * CACHE_TOKEN_BYTES,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 230,
    },
}


def prompts() -> DataProto:
    """Groups of equal prompts, of 60 to 150 tokens; together far more than any of the budgets."""
    generator = torch.Generator().manual_seed(1)
    of_group = torch.randint(4, 101, (GROUPS, LONGEST), generator=generator)
    lengths = torch.randint(60, LONGEST + 1, (GROUPS,), generator=generator)
    return DataProto(
        {
            "prompts": of_group.repeat_interleave(GROUP_SIZE, 0),
            "prompt_lengths": lengths.repeat_interleave(GROUP_SIZE),
            "seeds": torch.randint(2**62, (GROUPS * GROUP_SIZE,), generator=generator),
        }
    )


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """What engines of all limits answer, how often each put a running row off, and its scores of long sequences."""
    found: dict[str, dict[str, Any]] = {}
    engines = []
    model = tiny_model("qwen2")
    batch = prompts()
    sequences = [[7 * i % 97 + 4 for i in range(start, start + MAX_LEN - 1)] for start in range(9)]
    for name, limits in LIMITS.items():
        engine = start_engine(folder, **limits)
        engines.append(engine)  # closing one would take torch's process group from the next
        engine.load_weights(model.state_dict().items())
        engine.finish_update()
        with counted_preemptions() as preempted:
            columns = engine.generate(batch, sampling(max_tokens=NEW_TOKENS), NEW_TOKENS)
        scores = engine.score(sequences)
        found[name] = {
            "columns": {column: columns[column].numpy() for column in columns.column_names},
            "preempted": len(preempted),
            "score_gap": max(
                float((score - log_probs_of(model, tokens)).abs().max())
                for score, tokens in zip(scores, sequences, strict=True)
            ),
        }
    engines[-1].close()
    return found


@contextmanager
def counted_preemptions() -> Iterator[list[str]]:
    """The names of the requests that vLLM's scheduler puts off meanwhile."""
    from vllm.v1.core.sched.scheduler import Scheduler

    original, names = Scheduler._preempt_request, []

    def counted(scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(request.request_id)
        return original(scheduler, request, *args, **kwargs)

    Scheduler._preempt_request = counted
    try:
        yield names
    finally:
        Scheduler._preempt_request = original


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("limits-engine")
    save_tiny_model(folder, "qwen2")
    return run_gloo(1, answers, folder, timeout=600)[0]


@pytest.mark.parametrize("name", list(LIMITS))
def test_responses_do_not_depend_on_the_limits(facts, name):
    expected, found = facts["roomy"]["columns"], facts[name]["columns"]
    for column in ("responses", "response_lengths", "response_mask", "truncated"):
        assert (found[column] == expected[column]).all(), column
    assert abs(found["rollout_log_probs"] - expected["rollout_log_probs"]).max() < 1e-4


@pytest.mark.parametrize("name", list(LIMITS))
def test_scores_do_not_depend_on_the_limits(facts, name):
    assert facts[name]["score_gap"] < 1e-4


def test_a_small_cache_puts_rows_off_and_a_roomy_one_does_not(facts):
    assert facts["cache of a few sequences"]["preempted"] > 0
    assert facts["all at once"]["preempted"] > 0
    assert facts["roomy"]["preempted"] == 0
