"""The driver as `train_fsdp --cluster ray` starts it: a process of its own, on a Ray that is there already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import FAKE_BIN, WORKER

pytestmark = pytest.mark.usefixtures("one_node")


def start(tmp_path: Path, *, flags: dict[str, Any] | None = None, **run: Any) -> subprocess.Popen[str]:
    request = {
        "entry_point": "train_fsdp",
        "num_workers": 2,
        "binary": str(FAKE_BIN / "train_fsdp"),
        "flags": {"tp_size": 2, **(flags or {})},
        "run": {"name": "run", "storage_path": str(tmp_path), **run},
        "ray": {"address": ray.get_runtime_context().gcs_address, "resources_per_worker": WORKER},
    }
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    command = [sys.executable, "-m", "tandem_ray.driver", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = driver.communicate(timeout=240)
    print(out, err)
    return driver.returncode, json.loads(out.splitlines()[-1]), err


def training(tmp_path: Path) -> list[int]:
    """The workers' process ids, once all train."""
    diaries = [tmp_path / "run" / f"fake_rank{rank}.jsonl" for rank in range(2)]
    deadline = time.monotonic() + 240
    while not all(diary.exists() and diary.read_text().endswith("\n") for diary in diaries):
        assert time.monotonic() < deadline, "the workers never started"
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
    code, outcome, _ = finish(start(tmp_path))
    assert code == 0
    assert outcome == {
        "status": "finished",
        "exit_code": 0,
        "path": str(tmp_path / "run"),
        "checkpoint": "checkpoint_000004",
        "metrics": {"loss": 8 / 5, "tokens_per_second": 100.0, "step": 4, "epoch": 0},
    }


def test_a_failed_run_ends_with_the_root_cause(tmp_path: Path) -> None:
    code, outcome, err = finish(start(tmp_path, flags={"fault_kind": "error", "fault_rank": 1, "fault_step": 2}))
    assert code == 1
    assert outcome == {"status": "failed", "exit_code": 1, "error": "rank 1, step 2: the loss is NaN"}
    assert "error: rank 1, step 2: the loss is NaN" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_lets_the_workers_save_and_the_run_can_be_continued(tmp_path: Path, number: signal.Signals) -> None:
    driver = start(tmp_path, flags={"steps": 100000, "checkpoint_every": 0})
    workers = training(tmp_path)
    driver.send_signal(number)
    code, outcome, _ = finish(driver)
    assert code == 75
    assert outcome["status"] == "stopped"
    step = outcome["metrics"]["step"]
    assert outcome["checkpoint"] == f"checkpoint_{step:06}"
    assert gone(workers)
    if number == signal.SIGINT:
        return
    code, outcome, _ = finish(start(tmp_path, flags={"steps": step + 2}, name=None, resume_from="run"))
    assert code == 0
    assert outcome["metrics"]["step"] == step + 2
    firsts = [json.loads(line)["first"] for line in (tmp_path / "run" / "fake_rank0.jsonl").read_text().splitlines()]
    assert firsts == [1, step + 1]


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    driver = start(tmp_path, flags={"steps": 100000, "stubborn": True})
    workers = training(tmp_path)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)
    driver.send_signal(signal.SIGINT)
    code, outcome, _ = finish(driver)
    assert code == 130
    assert outcome["error"] == "interrupted; the workers were ended without saving"
    assert gone(workers)


def test_a_killed_driver_leaves_no_workers(tmp_path: Path) -> None:
    driver = start(tmp_path, flags={"steps": 100000})
    workers = training(tmp_path)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert gone(workers)
