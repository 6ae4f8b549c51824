"""Peers in virtual environments of their own: ``.venv-peers/<name>``, made once, never mixed with the project's."""

import subprocess
import sys
from pathlib import Path

PEERS: dict[str, tuple[tuple[str, ...], ...]] = {
    # The CPU build of torch comes first, else verl's requirements would choose a CUDA build.
    "verl": (("torch==2.13.0",), ("verl==0.9.1", "ray[default]==2.60.0", "tensordict==0.10.0")),
    "trl": (("torch==2.13.0",), ("trl==1.16.0",)),
}
"""By name, the requirements of each pip call in turn."""

_FOLDER = Path(__file__).resolve().parents[2] / ".venv-peers"


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, installed on first use and again when its requirements change.

    Args:
        name: a key of ``PEERS``.
    """
    folder = _FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(" ".join(requirements) for requirements in PEERS[name])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {folder} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-qq", "--upgrade", "pip>=25"], check=True)
    for requirements in PEERS[name]:
        subprocess.run([str(python), "-m", "pip", "install", "-qq", *requirements], check=True)
    stamp.write_text(wanted)
    return python
