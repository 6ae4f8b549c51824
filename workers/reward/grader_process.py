"""One grader process as its parent sees it: started, spoken to, killed."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from enum import Enum

from workers.reward.grader_main import START_SECONDS, Reply
from workers.reward.grading import Arguments

# A plain interpreter rather than multiprocessing, which would import the parent's main module, and with it torch.
_BOOTSTRAP = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from workers.reward.grader_main import main; main(**arguments)"
)


class State(Enum):
    """What a grader process is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


class GraderProcess:
    """A child process with a socket to it, in a session of its own so that killing it takes its children along.

    Args:
        grader_name: as ``graders.load_grader`` takes it.
        timeout_seconds: for one call.
    """

    def __init__(self, grader_name: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._socket, child = socket.socketpair()
        self._socket.settimeout(timeout_seconds)
        self._received = b""
        arguments = {
            "descriptor": child.fileno(),
            "grader_name": grader_name,
            "timeout_seconds": timeout_seconds,
            "path": sys.path,
        }
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[child.fileno()],
                start_new_session=True,
            )
        self.state = State.STARTING
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def fileno(self) -> int:
        """The socket's descriptor, for waiting."""
        return self._socket.fileno()

    def send(self, arguments: Arguments) -> None:
        """Hands out a call to an idle process.

        Raises:
            OSError: the process is dead, or takes nothing in for ``timeout_seconds``.
        """
        self._socket.sendall(json.dumps(arguments).encode() + b"\n")
        self.state = State.BUSY
        self.deadline = time.monotonic() + self._timeout_seconds

    def receive(self) -> Reply | None:
        """What has arrived: a reply, after which the process is idle, or None while a part is missing.

        Raises:
            OSError: the process is dead.
        """
        arrived = self._socket.recv(65536)
        if not arrived:
            raise ConnectionResetError("the grader process closed its socket")
        self._received += arrived
        if not self._received.endswith(b"\n"):
            return None
        reply = Reply(**json.loads(self._received))
        self._received = b""
        self.state, self.deadline = State.IDLE, math.inf
        return reply

    def end(self) -> str:
        """Kills the process with all its children and tells how it ended, or that it was killed here."""
        self._socket.close()
        # Until wait() the process's id cannot belong to anyone else, so the kill meets no stranger.
        os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
