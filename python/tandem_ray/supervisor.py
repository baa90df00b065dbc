"""One worker's life inside a Ray actor: started, listened to, asked to stop, and told apart how it ended."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tandem_ray import exit_codes
from tandem_ray.control_socket import ControlSocket
from tandem_ray.errors import Failure, WorkerFailedError
from tandem_ray.protocol import Done, Error, Event, Hello, Message, Phase, Progress, Report
from tandem_ray.reporter import Reporter
from tandem_ray.run_log import RunLog
from tandem_ray.worker_process import WorkerProcess, describe_exit

PROTOCOL_VERSION: Final = 1
# How soon the end of the worker, a request to stop, and a preemption are noticed.
_TICK_S: Final = 0.2
# A worker's last events are in the socket's buffer when it has ended.
_DRAIN_S: Final = 2.0
# Ray acts on the first error that it sees, looking every 2 s. A failure that only follows from another rank's is held
# back for that long and a little more, so that the error which ends the run is the root cause.
SECONDARY_DELAY_S: Final = 5.0
# The phase from which on a worker has something to save (crates/launch/PROTOCOL.md).
_TRAINING: Final = "training"
# How long the news that a worker has begun to train may be on its way.
_LAST_NEWS_S: Final = 0.5
# Ranks agree to stop: a worker may have left before its own supervisor has seen the request that another one passed on.
STOP_NEWS_S: Final = 30.0


@dataclasses.dataclass(frozen=True)
class Signs:
    """What the supervisor looks at besides its worker."""

    stop_requested: Callable[[], bool]
    preemption_announced: Callable[[], bool]
    # How often a checkpoint was asked for.
    saves_requested: Callable[[], int] = lambda: 0


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a supervisor waits for its worker."""

    # To finish its step and save after it was asked to stop.
    stop_grace_s: float
    # For a sign of life: the end of a step, a new phase, a report. 0 waits for ever.
    hang_timeout_s: float


class Supervisor:
    """Runs one worker to its end. `run` and everything that it calls belong to one thread; `kill` may come from any."""

    def __init__(
        self,
        rank: int,
        reporter: Reporter,
        signs: Signs,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._reporter = reporter
        self._signs = signs
        self._patience = patience
        self._phase = "starting"
        self._clock = clock
        self._last_sign = clock()
        self._stop_deadline: float | None = None
        self._asked_to_save = False
        self._saves_passed_on = 0
        self._stop_seen = 0.0
        # It has come to train: from then on a stop may have something to save.
        self._trains = False
        self._ended_before_training = False
        # Why this supervisor killed its worker, if it did.
        self._verdict: str | None = None
        self._log = RunLog(rank)
        self._progress: Progress | None = None
        self._error: Error | None = None
        self._done: Done | None = None
        self._process: WorkerProcess | None = None
        self._killed = threading.Event()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Starts the worker and waits for its end.

        Returns:
            `status` ("finished", or "stopped" after a request to stop), and the last metrics.

        Raises:
            WorkerFailedError: It ended in any other way.
        """
        with ControlSocket() as control:
            process = WorkerProcess(
                command,
                {**environment, "TANDEM_CONTROL": str(control.path)},
                self._log,
                pass_fds=pass_fds,
            )
            self._process = process
            try:
                while (status := process.poll()) is None:
                    if (event := control.next_event(_TICK_S)) is not None:
                        self._handle(event)
                    self._reporter.raise_if_failed()
                    self._look_around(control, process)
                for event in control.drain(_DRAIN_S):
                    self._handle(event)
            finally:
                process.kill()
        return self._outcome(status, process)

    def kill(self) -> None:
        """Ends the worker at once: Ray is about to end the actor."""
        self._killed.set()
        if self._process is not None:
            self._process.kill()

    def _look_around(self, control: ControlSocket, process: WorkerProcess) -> None:
        now = self._clock()
        if self._stop_deadline is None and self._signs.stop_requested():
            self._stop_deadline = now + self._patience.stop_grace_s
            self._stop_seen = now
            control.send("stop")
        if self._stop_deadline is not None and not self._trains and now >= self._stop_seen + _LAST_NEWS_S:
            # While ranks meet, load or tokenize there is nothing to save, and they do not listen.
            self._ended_before_training = True
            process.kill()
            return
        if self._stop_deadline is not None and now >= self._stop_deadline:
            self._verdict = f"did not stop within {self._patience.stop_grace_s:g} s after it was asked to"
        if 0 < self._patience.hang_timeout_s <= now - self._last_sign:
            self._verdict = f"gave no sign of life for {self._patience.hang_timeout_s:g} s ({self._phase})"
        if self._verdict is not None:
            process.kill()
        # Ranks agree after each step on what any of them was asked for; told at different moments, they save twice.
        if self._rank == 0 and (saves := self._signs.saves_requested()) > self._saves_passed_on:
            self._saves_passed_on = saves
            control.send("save_now")
        # Ray restarts the run when the node is gone; until then training goes on.
        if not self._asked_to_save and self._signs.preemption_announced():
            self._asked_to_save = True
            self._log.message("warning", "a node of this run is about to be taken away: saving a checkpoint")
            control.send("save_now")

    def _handle(self, event: Event) -> None:
        match event:
            case Message(level=level, text=text):
                self._log.message(level, text)
            case Error():
                self._error = event
            case _:
                # All others are signs of life: a worker that only repeats a message is not getting on.
                self._last_sign = self._clock()
                self._handle_sign(event)

    def _handle_sign(self, event: Event) -> None:
        match event:
            case Hello(version=version) if version > PROTOCOL_VERSION:
                self._log.message("warning", f"the worker speaks version {version} of the protocol, this is version 1")
            case Phase(name=name):
                self._phase = name
                self._trains = self._trains or name == _TRAINING
            case Progress():
                self._trains = True
                self._progress = event
                if self._rank == 0:
                    self._log.progress(event)
            case Report():
                if self._rank == 0 and event.checkpoint_dir_name is None:
                    self._log.evaluation(event)
                self._reporter.put(event, self._progress)
            case Done():
                self._done = event
            case _:
                pass

    def _outcome(self, status: int, process: WorkerProcess) -> dict[str, Any]:
        stopped = status == exit_codes.STOPPED_AFTER_SAVING and self._stop_was_requested()
        if status == exit_codes.OK or stopped:
            self._reporter.finish()
            return {"status": "stopped" if stopped else "finished", "metrics": self._last_metrics()}
        failure = self._failure(status, process)
        if self._ended_before_training or (failure.secondary and self._is_ended_by_peers()):
            self._reporter.finish()
            return {"status": "stopped", "metrics": {}}
        if not self._killed.is_set():
            self._log.message("error", failure.message)
        if failure.secondary:
            self._killed.wait(SECONDARY_DELAY_S)
        raise WorkerFailedError(failure)

    def _is_ended_by_peers(self) -> bool:
        """Whether a worker that has done nothing yet lost its peers because their supervisors have heard of a stop."""
        return self._progress is None and self._stop_was_requested(SECONDARY_DELAY_S)

    def _stop_was_requested(self, patience_s: float = STOP_NEWS_S) -> bool:
        if self._stop_deadline is not None:
            return True
        latest = time.monotonic() + patience_s
        while not self._signs.stop_requested():
            if time.monotonic() >= latest or self._killed.wait(_TICK_S):
                return False
        return True

    def _failure(self, status: int, process: WorkerProcess) -> Failure:
        exit_code = status if status >= 0 else 128 - status
        if self._error is not None:
            return Failure(
                rank=self._rank,
                step=self._error.step,
                message=self._error.message,
                exit_code=exit_code,
                secondary=self._error.secondary,
            )
        step = None if self._progress is None else self._progress.step
        if self._verdict is not None:
            message = f"the worker {self._verdict}, and was killed"
        else:
            message = f"the worker process {describe_exit(status)} without saying why"
            if tail := process.tail():
                message += f"; its last lines:\n{tail}"
        return Failure(rank=self._rank, step=step, message=message, exit_code=exit_code)

    def _last_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if self._progress is not None:
            metrics = {**self._progress.metrics, "step": self._progress.step, "epoch": self._progress.epoch}
        return {**metrics, **(self._done.metrics if self._done is not None else {})}
