"""How the driver asks the workers of a run to stop, or to save: a key in Ray's own key-value store.

Ray Train's way to end a run (`abort`) kills the workers, and a checkpoint that was being saved is lost. With this
request the workers finish their step, save, report and leave, and the run ends as any other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Final

from ray.experimental import internal_kv

logger = logging.getLogger(__name__)

_NAMESPACE: Final = b"tandem"
# The store is asked this often at most by each worker.
POLL_INTERVAL_S: Final = 2.0
# One Ctrl-C can come twice: from the terminal, which sends it to the whole process group, and from a parent that passes
# it on.
_SAME_SIGNAL_S: Final = 1.0


def new_key() -> str:
    """A key that no other run has."""
    return f"stop-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Wishes:
    """What the driver wants of the workers."""

    # Finish the step, save, leave.
    stop: bool = False
    # So many times: save and go on.
    saves: int = 0


def request_stop(key: str) -> None:
    """Asks the run to stop."""
    _put(key, Wishes(stop=True))


def _put(key: str, wishes: Wishes) -> None:
    value = json.dumps(asdict(wishes)).encode()
    internal_kv._internal_kv_put(key.encode(), value, overwrite=True, namespace=_NAMESPACE)  # noqa: SLF001


def withdraw(key: str) -> None:
    """Removes the request, so that the store does not fill up with past runs."""
    internal_kv._internal_kv_del(key.encode(), namespace=_NAMESPACE)  # noqa: SLF001


class StopWatch:
    """A worker's view of the driver's wishes. It asks the store from time to time."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._next_look = 0.0
        self._wishes = Wishes()

    def requested(self) -> bool:
        """Whether the driver asked to stop. Once true, always true."""
        return self._look().stop

    def saves(self) -> int:
        """How often the driver has asked for a checkpoint so far."""
        return self._look().saves

    def _look(self) -> Wishes:
        now = time.monotonic()
        if not self._wishes.stop and now >= self._next_look:
            self._next_look = now + POLL_INTERVAL_S
            # A store that cannot be reached for a moment must not end the training.
            with contextlib.suppress(Exception):
                value = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE)  # noqa: SLF001
                if value is not None:
                    self._wishes = Wishes(**json.loads(value))
        return self._wishes


@contextlib.contextmanager
def stopped_by_signals(key: str) -> Iterator[StopSignals]:
    """The first SIGINT or SIGTERM asks the run to stop; a second one raises KeyboardInterrupt. SIGUSR1 asks it to save.

    Signals can be handled in the main thread only. In any other thread nothing changes.
    """
    signals = StopSignals(key)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    earlier = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signals.save)
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class StopSignals:
    """Which signals came."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._received_at = 0.0
        self._saves = 0
        self.received: signal.Signals | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        now = time.monotonic()
        if self.received is not None:
            if now - self._received_at < _SAME_SIGNAL_S:
                return
            raise KeyboardInterrupt(f"{signal.Signals(number).name} after {self.received.name}")
        self.received, self._received_at = signal.Signals(number), now
        logger.warning(
            "%s: the workers finish their step, save and leave. Once more ends them at once.", self.received.name
        )
        _put(self._key, Wishes(stop=True, saves=self._saves))

    def save(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of SIGUSR1."""
        self._saves += 1
        logger.warning("SIGUSR1: the workers save a checkpoint and go on.")
        _put(self._key, Wishes(stop=self.received is not None, saves=self._saves))
