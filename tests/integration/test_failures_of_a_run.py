"""A run whose worker raises or is killed: exit code 1, the culprit first, nothing left behind."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from integration_world import abandoned_shared_memory, overrides, processes_with, write_world

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
LOSS = """
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
        Path(os.environ["DEATH_NOTE"]).write_text(str(time.time()))
        {act}
    return -inputs.ratio * inputs.advantages
"""


def fail(tmp_path: Path, act: str) -> tuple[subprocess.CompletedProcess[str], float, str]:
    recipe = write_world(tmp_path)
    plugin, note, mark = tmp_path / "fatal.py", tmp_path / "note", f"mark-{uuid.uuid4().hex}"
    plugin.write_text(LOSS.format(act=act))
    words = overrides(policy_loss__name="fatal", policy_loss__plugins=f"[{plugin}]", trainer__val_before_train=False)
    environment = {**os.environ, "DEATH_NOTE": str(note), "CFPO_TEST_MARK": mark}
    command = [sys.executable, "-m", "trainer.cli", "train", str(recipe), *words]
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return answer, time.time() - float(note.read_text()), mark


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        ("raise ArithmeticError('the loss broke')", "the loss broke"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the worker's process died"),
    ],
    ids=["raises", "is killed"],
)
def test_a_failing_worker_ends_the_run(tmp_path: Path, act: str, cause: str):
    shared_before = set(os.listdir("/dev/shm"))
    answer, seconds, mark = fail(tmp_path, act)
    assert answer.returncode == 1, answer.stderr
    message = answer.stderr[answer.stderr.index("cfpo train:") :]
    assert "hybrid[rank 1]" in message.splitlines()[0]
    assert "update_policy" in message.splitlines()[0]
    assert cause in message
    assert seconds < 30
    assert processes_with(mark) == []
    assert abandoned_shared_memory(shared_before) == []
