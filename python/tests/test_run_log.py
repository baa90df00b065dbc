"""The lines that a user reads."""

from __future__ import annotations

import pytest

from tandem_ray.protocol import Progress
from tandem_ray.run_log import RunLog


def test_progress_is_shown_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    log = RunLog(0, clock=lambda: now[0])
    for step in range(1, 31):
        log.progress(Progress(step, 0, {"loss": 2.0, "tokens_per_s": 1310.4, "last_step": 30.0, "other": 1.0}))
        now[0] += 1
    assert capsys.readouterr().out.splitlines() == [
        f"[rank 0] step {step} of 30, epoch 1: loss 2.0000, 1310 tokens/s" for step in (1, 11, 21, 30)
    ]


def test_progress_without_numbers_is_still_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    RunLog(2).progress(Progress(7, 1, {}))
    assert capsys.readouterr().out == "[rank 2] step 7, epoch 2: \n"


def test_messages_show_their_importance(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(1)
    log.message("debug", "details")
    log.message("info", "mesh 2 x 2\nplan: ...")
    log.message("warning", "slow")
    assert capsys.readouterr().out.splitlines() == [
        "[rank 1] mesh 2 x 2",
        "[rank 1] plan: ...",
        "[rank 1] warning: slow",
    ]
