"""What the user sees of a run: lines of one rank, in the actor's output, which Ray keeps and shows on the driver."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Final

from tandem_ray.protocol import Progress, Report

# A terminal's progress bar is of no use in a log, and a line for every step is too much of it.
PROGRESS_INTERVAL_S: Final = 10.0

# What a progress line shows, where the worker reports it.
_SHOWN: Final[dict[str, str]] = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.3g}",
    "grad_norm": "grad norm {:.3f}",
    "tokens_per_s": "{:.0f} tokens/s",
    "mfu": "MFU {:.0%}",
    "step_time_s": "{:.3f} s/step",
}


class RunLog:
    """Writes lines with the rank before them. Threads may share it: every line is one write."""

    def __init__(self, rank: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rank = rank
        self._clock = clock
        self._next_progress = 0.0

    def line(self, text: str) -> None:
        """Writes one line."""
        sys.stdout.write(f"[rank {self._rank}] {text}\n")
        sys.stdout.flush()

    def message(self, level: str, text: str) -> None:
        """Writes a message, whose importance is shown unless it is only informative. Details are left out."""
        if level == "debug":
            return
        for line in text.splitlines():
            self.line(line if level == "info" else f"{level}: {line}")

    def progress(self, progress: Progress) -> None:
        """Writes how far the run is, at most every 10 s, and at the last step."""
        last_step = progress.metrics.get("last_step", 0)
        if self._clock() < self._next_progress and progress.step != last_step:
            return
        self._next_progress = self._clock() + PROGRESS_INTERVAL_S
        shown = [form.format(progress.metrics[name]) for name, form in _SHOWN.items() if name in progress.metrics]
        of_all = f" of {last_step:.0f}" if last_step else ""
        self.line(f"step {progress.step}{of_all}, epoch {progress.epoch + 1}: {', '.join(shown)}")

    def evaluation(self, report: Report) -> None:
        """Writes what an evaluation gave; nothing of other reports."""
        numbers = report.metrics
        if (loss := numbers.get("eval_loss")) is not None:
            step, perplexity = numbers.get("step", math.nan), numbers.get("perplexity", math.nan)
            self.line(f"evaluated after step {step:.0f}: eval loss {loss:.4f}, perplexity {perplexity:.2f}")
