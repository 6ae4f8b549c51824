"""What the tests of failures rest on: telling what a run has left from what other processes use."""

import mmap
from pathlib import Path

import integration_world
import pytest


def test_what_is_mapped_under_another_name_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(integration_world, "SHARED_MEMORY", tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"x")
    assert integration_world.abandoned_shared_memory(set()) == ["first"]
    assert integration_world.abandoned_shared_memory({"first"}) == []
    with first.open("r+b") as file:
        assert integration_world.abandoned_shared_memory(set()) == []
        mapped = mmap.mmap(file.fileno(), 1)
    second.hardlink_to(first)  # a semaphore takes its name so
    first.unlink()
    assert integration_world.abandoned_shared_memory(set()) == []
    mapped.close()
    assert integration_world.abandoned_shared_memory(set()) == ["second"]
