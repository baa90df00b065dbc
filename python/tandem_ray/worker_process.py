"""A worker binary as a child of this process."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Final

from tandem_ray.run_log import RunLog

# Enough to see what a worker said before it died without a word on its control socket.
TAIL_LINES: Final = 20


class WorkerProcess:
    """A running worker in a process group of its own, whose output is forwarded line by line.

    The worker asks the kernel for SIGKILL at its parent's death (`TANDEM_CONTROLLER_PID`), so a killed actor leaves no
    child. Linux counts the end of the *thread* that started the child as that death: the thread that makes this object
    must be the one that waits for the child.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: RunLog, *, pass_fds: Sequence[int] = ()
    ) -> None:
        self._log = log
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._process = subprocess.Popen(
            command,
            env={**environment, "TANDEM_CONTROLLER_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._output = threading.Thread(
            target=self._forward, args=(self._process.stdout,), name="tandem-output", daemon=True
        )
        self._output.start()

    @property
    def pid(self) -> int:
        """The worker's process id, which is also its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; `None` while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends the worker and everything that it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self) -> str:
        """The last lines of output, once the worker has ended."""
        self._output.join(timeout=1)
        return "\n".join(self._tail)

    def _forward(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\r\n")
                self._tail.append(line)
                self._log.line(line)


def describe_exit(status: int) -> str:
    """An exit status in words: `was killed by SIGKILL`, `exited with code 3`."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (the kernel does this when memory runs out)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
