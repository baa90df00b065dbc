"""The driver as `train_fsdp --cluster ray` starts it: a process of its own, on a Ray that is there already."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import FAKE_BIN, RUN_LIMIT_S, WORKER, wait_until

pytestmark = pytest.mark.usefixtures("cluster")


class Driver:
    """A driver at work. Its output goes to files, because nobody reads a pipe while it runs."""

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        (folder / "request.json").write_text(json.dumps(request))
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            command = [sys.executable, "-m", "tandem_ray.driver", str(folder / "request.json")]
            self.process = subprocess.Popen(command, stdout=out, stderr=err)

    def finish(self) -> tuple[int, dict[str, Any], str]:
        """The exit code, the outcome, and the errors."""
        try:
            code = self.process.wait(timeout=RUN_LIMIT_S)
        finally:
            self.process.kill()
            print(self.out.read_text(), self.err.read_text())
        return code, json.loads(self.out.read_text().splitlines()[-1]), self.err.read_text()


def start(tmp_path: Path, *, flags: dict[str, Any] | None = None, **run: Any) -> Driver:
    request = {
        "entry_point": "train_fsdp",
        "num_workers": 2,
        "binary": str(FAKE_BIN / "train_fsdp"),
        "flags": {"tp_size": 2, **(flags or {})},
        "run": {"name": "run", "storage_path": str(tmp_path), **run},
        "ray": {"address": ray.get_runtime_context().gcs_address, "resources_per_worker": WORKER},
    }
    return Driver(tmp_path, request)


def training(tmp_path: Path, driver: Driver) -> list[int]:
    """The workers' process ids, once all train."""
    diaries = [tmp_path / "run" / f"fake_rank{rank}.jsonl" for rank in range(2)]
    deadline = time.monotonic() + RUN_LIMIT_S
    while not all(diary.exists() and diary.read_text().endswith("\n") for diary in diaries):
        if driver.process.poll() is not None or time.monotonic() > deadline:
            driver.process.kill()
            pytest.fail(f"the workers never started: {driver.out.read_text()} {driver.err.read_text()}")
        time.sleep(0.05)
    return [int(json.loads(diary.read_text())["pid"]) for diary in diaries]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_run_ends_with_its_outcome_as_the_last_line(tmp_path: Path) -> None:
    code, outcome, _ = start(tmp_path).finish()
    assert code == 0
    assert outcome == {
        "status": "finished",
        "exit_code": 0,
        "path": str(tmp_path / "run"),
        "checkpoint": "checkpoint_000004",
        "metrics": {"loss": 8 / 5, "tokens_per_second": 100.0, "step": 4, "epoch": 0},
    }


def test_a_failed_run_ends_with_the_root_cause(tmp_path: Path) -> None:
    code, outcome, err = start(tmp_path, flags={"fault_kind": "error", "fault_rank": 1, "fault_step": 2}).finish()
    assert code == 1
    assert outcome == {"status": "failed", "exit_code": 1, "error": "rank 1, step 2: the loss is NaN"}
    assert "error: rank 1, step 2: the loss is NaN" in err


def test_one_signal_lets_the_workers_save_and_the_run_can_be_continued(tmp_path: Path) -> None:
    driver = start(tmp_path, flags={"steps": 100000, "checkpoint_every": 0})
    workers = training(tmp_path, driver)
    driver.process.send_signal(signal.SIGUSR1)
    wait_until("a checkpoint was saved on the way", lambda: any((tmp_path / "run").glob("checkpoint_0*/commit.json")))
    [saved] = (tmp_path / "run").glob("checkpoint_0*")
    driver.process.send_signal(signal.SIGTERM)
    code, outcome, _ = driver.finish()
    assert code == 75
    assert outcome["checkpoint"] > saved.name
    assert outcome["status"] == "stopped"
    step = outcome["metrics"]["step"]
    assert outcome["checkpoint"] == f"checkpoint_{step:06}"
    assert gone(workers)
    code, outcome, _ = start(
        tmp_path, flags={"steps": step + 2, "checkpoint_every": 1}, name=None, resume_from="run"
    ).finish()
    assert code == 0
    assert outcome["metrics"]["step"] == step + 2
    firsts = [json.loads(line)["first"] for line in (tmp_path / "run" / "fake_rank0.jsonl").read_text().splitlines()]
    assert firsts == [1, step + 1]


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    driver = start(tmp_path, flags={"steps": 100000, "stubborn": True})
    workers = training(tmp_path, driver)
    driver.process.send_signal(signal.SIGINT)
    wait_until("the first is heard", lambda: "Once more ends them at once" in driver.err.read_text())
    # Within a second, a second one would be taken for the first: Ctrl-C can come twice.
    time.sleep(1.5)
    driver.process.send_signal(signal.SIGINT)
    code, outcome, _ = driver.finish()
    assert code == 130
    assert outcome["error"] == "interrupted; the workers were ended without saving"
    assert gone(workers)


def test_a_killed_driver_leaves_no_workers(tmp_path: Path) -> None:
    driver = start(tmp_path, flags={"steps": 100000})
    workers = training(tmp_path, driver)
    driver.process.kill()
    driver.process.wait()
    assert gone(workers)
