"""A run whose worker is killed: exit code 1, the culprit first, nothing left behind."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from integration_world import abandoned_shared_memory, overrides, processes_with, write_fatal_loss, write_world

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent


def test_a_killed_worker_ends_the_run(tmp_path: Path):
    recipe, mark = write_world(tmp_path), f"mark-{uuid.uuid4().hex}"
    fatal, note = write_fatal_loss(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    words = overrides(trainer__val_before_train=False, **fatal)
    command = [sys.executable, "-m", "trainer.cli", "train", str(recipe), *words]
    environment = {**os.environ, "CFPO_TEST_MARK": mark}
    shared_before = set(os.listdir("/dev/shm"))
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    seconds = time.time() - float(note.read_text())
    assert answer.returncode == 1, answer.stderr
    message = answer.stderr[answer.stderr.index("cfpo train:") :]
    assert "hybrid[rank 1]" in message.splitlines()[0]
    assert "update_policy" in message.splitlines()[0]
    assert "the worker's process died" in message
    assert seconds < 30
    assert processes_with(mark) == []
    assert abandoned_shared_memory(shared_before) == []
