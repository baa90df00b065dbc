"""One worker under its supervisor, without Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem_ray import supervisor as supervisor_module
from tandem_ray.errors import WorkerFailedError
from tandem_ray.reporter import Reporter
from tandem_ray.supervisor import Patience, Signs, Supervisor

FAKE_WORKER = Path(__file__).parent / "fake_bin" / "fake_worker.py"
Reports = list[tuple[dict[str, Any], str | None]]


class Rig:
    """A supervisor of the only rank of a run, and what it reported."""

    def __init__(self, run_dir: Path) -> None:
        self.reports: Reports = []
        self.stop = threading.Event()
        self.preemption = threading.Event()
        self.saves = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.run_dir = run_dir
        self.clock: Callable[[], float] = time.monotonic
        self.reporter = Reporter(lambda metrics, name: self.reports.append((metrics, name)))

    def supervise(self, *flags: str, stop_grace_s: float = 60, hang_timeout_s: float = 0) -> dict[str, Any]:
        signs = Signs(self.stop.is_set, self.preemption.is_set, lambda: self.saves)
        supervisor = Supervisor(0, self.reporter, signs, Patience(stop_grace_s, hang_timeout_s), self.clock)
        return supervisor.run(
            [str(FAKE_WORKER), "--tp_size", "1", "--num_workers", "1", *flags],
            {**os.environ, **self.variables()},
            pass_fds=[self.listener.fileno()],
        )

    def variables(self) -> dict[str, str]:
        return {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.listener.getsockname()[1]),
            "TANDEM_MASTER_FD": str(self.listener.fileno()),
            "TANDEM_ATTEMPT": "0",
            "TANDEM_CHECKPOINT": "",
            "TANDEM_RUN_DIR": str(self.run_dir),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def when_training(self, action: Callable[[], None]) -> threading.Thread:
        """Does something once the worker trains."""

        def wait() -> None:
            while not list(self.run_dir.glob("fake_rank0.jsonl")):
                time.sleep(0.01)
            action()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.listener.close()


def test_a_worker_that_finishes_has_reported_everything(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    ending = rig.supervise()
    assert ending == {
        "status": "finished",
        "metrics": {"loss": 8 / 5, "tokens_per_second": 100.0, "step": 4, "epoch": 0},
    }
    assert [(metrics["step"], name) for metrics, name in rig.reports] == [
        (2, "checkpoint_000002"),
        (4, "checkpoint_000004"),
    ]
    assert "[rank 0] rank 0 of 1 is here, attempt 0" in capfd.readouterr().out


def test_a_request_to_stop_ends_with_a_checkpoint(rig: Rig) -> None:
    rig.when_training(rig.stop.set)
    ending = rig.supervise("--steps", "100000", "--checkpoint_every", "0")
    assert ending["status"] == "stopped"
    assert [name for _, name in rig.reports] == [f"checkpoint_{ending['metrics']['step']:06}"]


def test_a_request_that_comes_before_the_worker_listens_is_not_lost(rig: Rig) -> None:
    rig.stop.set()
    assert rig.supervise("--steps", "100000", "--checkpoint_every", "0")["status"] == "stopped"


def test_a_worker_that_does_not_train_yet_is_ended_at_once(rig: Rig) -> None:
    rig.stop.set()
    # It would ignore the request for ever, and the patience with it is an hour.
    ending = rig.supervise("--steps", "100000", "--stubborn", "true", "--load_s", "1000", stop_grace_s=3600)
    assert ending == {"status": "stopped", "metrics": {}}
    assert rig.reports == []


def test_a_worker_that_does_not_stop_in_time_is_killed(rig: Rig) -> None:
    rig.when_training(rig.stop.set)
    with pytest.raises(WorkerFailedError, match=r"did not stop within 0\.5 s after it was asked to, and was killed"):
        rig.supervise("--steps", "100000", "--stubborn", "true", stop_grace_s=0.5)


def test_a_worker_that_hangs_is_killed_and_what_it_did_is_said(rig: Rig) -> None:
    flags = ["--fault_kind", "hang", "--fault_rank", "0", "--fault_step", "3"]
    # Ten minutes pass at once when the last sign has been taken: the report of step 2.
    rig.clock = lambda: 600.0 if rig.reports else 0.0
    with pytest.raises(WorkerFailedError, match=r"step 2: the worker gave no sign of life for 600 s \(training\), and"):
        rig.supervise(*flags, hang_timeout_s=600)


def test_a_preemption_is_answered_by_a_checkpoint_and_training_goes_on(rig: Rig) -> None:
    rig.when_training(rig.preemption.set)
    ending = rig.supervise("--steps", "60", "--step_ms", "50", "--checkpoint_every", "0")
    assert ending["status"] == "finished"
    assert ending["metrics"]["step"] == 60
    assert len(rig.reports) == 1


def test_every_wish_for_a_checkpoint_is_passed_on_once(rig: Rig) -> None:
    def wish() -> None:
        for wishes in range(2):
            rig.saves += 1
            while len(rig.reports) == wishes:
                time.sleep(0.01)
        rig.stop.set()

    rig.when_training(wish)
    assert rig.supervise("--steps", "100000", "--checkpoint_every", "0")["status"] == "stopped"
    assert len(rig.reports) == 3, "two wishes, and the end"


def test_an_error_is_raised_in_the_workers_own_words(rig: Rig) -> None:
    with pytest.raises(WorkerFailedError, match=r"^rank 0, step 3: the loss is NaN$") as caught:
        rig.supervise("--fault_kind", "error", "--fault_rank", "0", "--fault_step", "3")
    assert caught.value.failure.exit_code == 1
    assert caught.value.may_pass


def test_wrong_flags_cannot_pass_by_trying_again(rig: Rig) -> None:
    with pytest.raises(WorkerFailedError, match="learning_rate is negative") as caught:
        rig.supervise("--fault_kind", "usage")
    assert not caught.value.may_pass


def test_a_death_without_a_word_is_described(rig: Rig) -> None:
    with pytest.raises(WorkerFailedError, match=r"step 1: .* was killed by SIGKILL .* without saying why") as caught:
        rig.supervise("--fault_kind", "kill", "--fault_rank", "0", "--fault_step", "2")
    assert caught.value.failure.exit_code == 137
    assert "rank 0 of 1 is here" in str(caught.value)


def test_a_program_that_never_connects_is_quoted(rig: Rig) -> None:
    supervisor = Supervisor(0, rig.reporter, Signs(lambda: False, lambda: False), Patience(1, 0))
    with pytest.raises(WorkerFailedError, match=r"libtorch_cpu\.so: cannot open"):
        supervisor.run(["/bin/sh", "-c", "echo libtorch_cpu.so: cannot open >&2; exit 127"], {})


def test_a_worker_that_left_before_the_request_was_seen_here_has_stopped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def seen_late() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    leave = ["/bin/sh", "-c", "exit 75"]
    supervisor = Supervisor(0, rig.reporter, Signs(seen_late, lambda: False), Patience(60, 0))
    assert supervisor.run(leave, {})["status"] == "stopped"

    # Nobody asked: it did not stop, it failed.
    monkeypatch.setattr(supervisor_module, "STOP_NEWS_S", 0.5)
    supervisor = Supervisor(0, rig.reporter, Signs(lambda: False, lambda: False), Patience(60, 0))
    with pytest.raises(WorkerFailedError, match="code 75 without saying why"):
        supervisor.run(leave, {})


def test_a_failure_of_the_report_ends_the_worker(rig: Rig) -> None:
    def refuse(_metrics: dict[str, Any], _name: str | None) -> None:
        raise ValueError("storage is full")

    rig.reporter = Reporter(refuse)
    with pytest.raises(ValueError, match="storage is full"):
        rig.supervise("--steps", "100000")


def test_secondary_failures_wait_for_the_root_cause(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "SECONDARY_DELAY_S", 1.0)
    script = (
        "import json, os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['TANDEM_CONTROL']);"
        "s.sendall(json.dumps(dict(event='error', rank=0, step=5, message='rank 1 left', secondary=True,"
        " exit_code=1)).encode() + b'\\n'); s.close(); os._exit(1)"
    )
    supervisor = Supervisor(0, rig.reporter, Signs(lambda: False, lambda: False), Patience(1, 0))
    started = time.monotonic()
    with pytest.raises(WorkerFailedError, match="rank 1 left") as caught:
        supervisor.run([sys.executable, "-c", script], dict(os.environ))
    assert caught.value.failure.secondary
    assert time.monotonic() - started >= 1.0


def test_a_killed_supervisor_leaves_no_worker(rig: Rig, tmp_path: Path) -> None:
    program = (
        "import os, sys, json\n"
        "from tandem_ray.supervisor import Patience, Supervisor, Signs\n"
        "from tandem_ray.reporter import Reporter\n"
        "no = lambda: False\n"
        "Supervisor(0, Reporter(lambda *_: None), Signs(no, no), Patience(1, 0)).run(sys.argv[2:], dict(os.environ),"
        " pass_fds=[int(sys.argv[1])])\n"
    )
    command = [sys.executable, "-c", program, str(rig.listener.fileno()), str(FAKE_WORKER)]
    flags = ["--tp_size", "1", "--num_workers", "1", "--steps", "100000"]
    parent = subprocess.Popen(
        [*command, *flags], env={**os.environ, **rig.variables()}, pass_fds=[rig.listener.fileno()]
    )
    rig.when_training(lambda: None).join(30)
    worker = int((tmp_path / "fake_rank0.jsonl").read_text().split('"pid": ')[1].split(",")[0])
    assert Path(f"/proc/{worker}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(500):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.01)
    pytest.fail(f"worker {worker} outlived its supervisor")
