"""A complete little run: random model, tokenizer, problems and a reward that random responses earn a part of."""

import os
from pathlib import Path
from typing import Any

import yaml
from data_world import char_tokenizer, numbered_rows, write_rows
from tiny_model import save_tiny_model

END_TOKEN = 3
SHARED_MEMORY = Path("/dev/shm")
FATAL_LOSS = """
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from cfpo_hybrid import register_policy_loss


@dataclass(frozen=True)
class NoKnobs:
    pass


@register_policy_loss("fatal", config=NoKnobs)
def fatal(inputs, config):
    if os.environ.get("RANK") == "1":
        Path({note!r}).write_text(str(time.time()))
        {act}
    return -inputs.ratio * inputs.advantages
"""
REWARD = """
def vowels(problem, response, ground_truth, extra):
    return sum(letter in "aeiou" for letter in response) / 8
"""


def write_world(folder: Path, **model: Any) -> Path:
    """The recipe of a run in ``folder`` for two workers, two iterations and two mini-batches; ``model`` is its sizes."""
    save_tiny_model(folder / "model", eos_token_id=END_TOKEN, **model)
    char_tokenizer().save_pretrained(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {
            "train_files": [write_rows(folder / "train.jsonl", numbered_rows(16))],
            "val_files": [write_rows(folder / "val.jsonl", numbered_rows(4))],
            "train_batch_size": 4,
            "max_prompt_length": 16,
            "max_response_length": 12,
        },
        "rollout": {"group_size": 4, "kv_cache_bytes": 2**25, "probe_every": 1},
        "reward": {"name": f"{folder / 'reward.py'}:vowels", "num_processes": 1},
        "algorithm": {"iterations": 2, "batch_ratio": 2},
        "policy_loss": {"name": "cfpo"},
        "actor": {"lr": 1e-3, "micro_batch_tokens": 64},
        "trainer": {
            "num_workers": 2,
            "device": "cpu",
            "total_steps": 1,
            "run_dir": str(folder / "run"),
            "generations_every": 1,
            "trackers": [],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_fatal_loss(folder: Path, act: str) -> tuple[dict[str, Any], Path]:
    """A loss in which rank 1 does ``act``: the settings that name it, and the file where it notes the time before."""
    plugin, note = folder / "fatal.py", folder / "note"
    plugin.write_text(FATAL_LOSS.format(note=str(note), act=act))
    return {"policy_loss__name": "fatal", "policy_loss__plugins": [str(plugin)]}, note


def processes_with(word: str) -> list[int]:
    """Processes whose environment or command line holds a word, this one excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in text:
            found.append(int(entry.name))
    return found


def abandoned_shared_memory(before: set[str]) -> list[str]:
    """Files in shared memory that are newer than ``before`` and that no living process has open or mapped.

    They are told by inode: a semaphore of another test is mapped under the name that it had before it was linked.
    """
    inodes = {name: _shared_inode(SHARED_MEMORY / name) for name in os.listdir(SHARED_MEMORY) if name not in before}
    in_use = set[int]().union(*(_shared_inodes(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()))
    return sorted(name for name, inode in inodes.items() if inode not in in_use and (SHARED_MEMORY / name).exists())


def _shared_inodes(process: Path) -> set[int]:
    """Of the files in shared memory that a process has mapped or open."""
    try:
        lines = [line.split(maxsplit=5) for line in (process / "maps").read_text().splitlines()]
        opened = [_shared_inode(link) for link in (process / "fd").iterdir()]
    except OSError:  # it ended
        return set()
    mapped = {int(fields[4]) for fields in lines if fields[-1].startswith(f"{SHARED_MEMORY}/")}
    return mapped | {inode for inode in opened if inode is not None}


def _shared_inode(path: Path) -> int | None:
    """None for what is gone, or no file in shared memory."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino if found.st_dev == SHARED_MEMORY.stat().st_dev else None


def overrides(**settings: Any) -> list[str]:
    """``key=value`` words; two underscores stand for a dot."""
    return [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
