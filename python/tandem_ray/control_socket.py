"""The supervisor's end of a worker's control socket."""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from tandem_ray.protocol import MAX_LINE_BYTES, Command, Event, LineError, encode_command, parse_event

logger = logging.getLogger(__name__)


class ControlSocket:
    """Listens for one worker, turns its lines into events, and carries commands to it.

    Nothing here waits for the worker: events pile up in a queue, and a command that comes before the worker has
    connected is delivered when it does.
    """

    def __init__(self) -> None:
        # The path of a Unix socket has 108 bytes at most, so it cannot be in the run's folder.
        self._folder = tempfile.mkdtemp(prefix="tandem-")
        self.path = Path(self._folder) / "control"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._undelivered: list[Command] = []
        self._warned: set[str] = set()
        self._reader = threading.Thread(target=self._serve, name="tandem-control", daemon=True)
        self._reader.start()

    def __enter__(self) -> ControlSocket:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or `None` when none comes in time."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def drain(self, timeout_s: float) -> list[Event]:
        """The events that are left, after the worker has ended. Waits for the end of its stream."""
        self._listener_shutdown()
        self._reader.join(timeout_s)
        events = []
        while (event := self.next_event(0)) is not None:
            events.append(event)
        return events

    def send(self, command: Command) -> None:
        """Tells the worker something. A worker that is gone hears nothing, which is no error."""
        with self._lock:
            if self._connection is None:
                self._undelivered.append(command)
                return
            # A worker that has left, or that reads nothing while its buffer is full, must not stop its supervisor.
            with contextlib.suppress(OSError):
                self._connection.send(encode_command(command), socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Ends the connection and removes the socket."""
        self._listener_shutdown()
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listener_shutdown(self) -> None:
        # Wakes a reader that still waits for a worker which never came.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        # The path has served: removed now, it cannot be left behind by an actor that is killed later.
        shutil.rmtree(self._folder, ignore_errors=True)
        with connection:
            with self._lock:
                self._connection = connection
                undelivered, self._undelivered = self._undelivered, []
            for command in undelivered:
                self.send(command)
            self._read(connection)
            with self._lock:
                self._connection = None

    def _read(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while True:
            try:
                line = stream.readline(MAX_LINE_BYTES)
            except OSError:
                return
            if not line:
                return
            try:
                event = parse_event(line)
            except LineError as error:
                self._warn_once(f"skipped a line on the control socket: {error}")
                continue
            if event is None:
                self._warn_once(f"ignored an event of a newer worker: {line[:200]!r}")
            else:
                self._events.put(event)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text)
