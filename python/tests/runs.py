"""The command line on the demo model, and what its runs leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from conftest import ROOT, RUN_LIMIT_S, wait_until

FLAGS: Final[dict[str, Any]] = {
    "model_name": str(ROOT / "demo" / "model"),
    "init": "random",
    "dataset_name": str(ROOT / "demo" / "data" / "kjv.txt"),
    "dataset_percentage": 10,
    "seq_length": 64,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "dtype": "fp32",
    "device": "cpu",
    "log_interval": 1,
}


class Command:
    """The command line, in a storage folder of its own; `within` is what it is started through."""

    def __init__(self, binaries: Path, storage: Path, address: str, within: Sequence[str] = ()) -> None:
        self.binaries, self.storage, self.within = binaries, storage, within
        self.ray = ["--cluster=ray", f"--ray_address={address}", "--resources_per_worker=CPU=0.1"]
        # The fake workers' folder, which Ray's own processes know, is not for these.
        self.environment = {name: value for name, value in os.environ.items() if name != "TANDEM_BIN_DIR"}
        self.environment["TANDEM_PYTHON"] = sys.executable

    def start(
        self, name: str, *extra: str, mesh: tuple[int, int] = (2, 2), strategy: str = "fsdp", **flags: Any
    ) -> subprocess.Popen[str]:
        """Starts `train_{strategy}`; its messages go to a file, because nobody reads a pipe while it runs."""
        run = {"tp_size": mesh[0], "dp_size": mesh[1], "num_workers": mesh[0] * mesh[1], "storage_path": self.storage}
        if "resume_from" not in flags:
            run["experiment_name"] = name
        given = [f"--{flag}={value}" for flag, value in {**FLAGS, **run, **flags}.items()]
        with self.log(name).open("w") as log:
            return subprocess.Popen(
                [*self.within, self.binaries / f"train_{strategy}", *given, *extra],
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
            )

    def run(self, name: str, *extra: str, **flags: Any) -> int:
        """Runs to the end and returns the exit code."""
        process = self.start(name, *extra, **flags)
        try:
            return process.wait(timeout=RUN_LIMIT_S)
        finally:
            process.kill()
            print(self.log(name).read_text())

    def log(self, name: str) -> Path:
        return self.storage / f"{name}.log"

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in self._metrics(name) if "loss" in line]

    def eval_losses(self, name: str) -> dict[int, float]:
        return {line["step"]: line["eval_loss"] for line in self._metrics(name) if "eval_loss" in line}

    def _metrics(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.storage / name / "metrics.jsonl").read_text().splitlines()]


def latest(run_dir: Path) -> str | None:
    """The newest checkpoint on Ray's record; `None` also while Ray writes it."""
    try:
        snapshot = json.loads((run_dir / "checkpoint_manager_snapshot.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    newest = snapshot["latest_checkpoint_result"]
    return None if newest is None else str(newest["checkpoint_dir_name"])


def kept(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.glob("checkpoint_*") if path.is_dir())


def workers(run_dir: Path) -> dict[int, int]:
    """Process ids by rank of the binaries that train this run now."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(
                item.split("=", 1) for item in (process / "environ").read_text().split("\0") if "=" in item
            )
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("train_") and environment.get("TANDEM_RUN_DIR") == str(run_dir):
            found[int(environment["RANK"])] = int(process.name)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


class Attempts:
    """The workers of a run that Ray starts again and again."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self._size = directory, size
        self._seen: set[int] = set()

    def next(self) -> dict[int, int]:
        """Process ids by rank, as soon as all workers are others than before and have added a checkpoint."""
        before = {None, *kept(self.directory)}
        now: dict[int, int] = {}

        def others_train() -> bool:
            nonlocal now
            now = workers(self.directory)
            others = len(now) == self._size and self._seen.isdisjoint(now.values())
            return others and latest(self.directory) not in before

        wait_until("new workers have saved a checkpoint", others_train)
        self._seen.update(now.values())
        return now

    def survivors(self) -> list[int]:
        """Workers of any attempt that are still there."""
        return [pid for pid in self._seen if Path(f"/proc/{pid}").exists()]
