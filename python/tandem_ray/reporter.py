"""A worker's reports on their way to Ray Train."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from tandem_ray.protocol import Progress, Report

ReportFunction = Callable[[dict[str, Any], str | None], None]


class Reporter:
    """Calls Ray's `report` in a thread of its own.

    `ray.train.report` waits until every rank has called it. A rank whose worker has died must raise at once instead of
    waiting for the others, and a worker's death must be noticed while its report waits.
    """

    def __init__(self, report: ReportFunction) -> None:
        self._report = report
        self._queue: queue.SimpleQueue[tuple[dict[str, Any], str | None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tandem-reporter", daemon=True)
        self._thread.start()

    def put(self, report: Report, progress: Progress | None) -> None:
        """Passes a report on, with the step and its values where the report itself does not have them."""
        metrics: dict[str, Any] = {}
        if progress is not None:
            metrics = {**progress.metrics, "step": progress.step, "epoch": progress.epoch}
        self._queue.put(({**metrics, **report.metrics}, report.checkpoint_dir_name))

    def raise_if_failed(self) -> None:
        """Raises what `report` raised."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits until Ray has every report."""
        self._queue.put(None)
        self._thread.join()
        self.raise_if_failed()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._report(*item)
            except BaseException as error:  # noqa: BLE001, PERF203 - raised again in the thread that trains
                self._error = error
                return
