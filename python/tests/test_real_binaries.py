"""The built binaries on Ray: they must not be missing, and must train exactly as under the local controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import RUN_LIMIT_S, SLOT, add_nodes, wait_until
from ray.cluster_utils import Cluster
from ray.train import CheckpointConfig

from tandem_ray import ConfigError, TandemTrainer

pytestmark = pytest.mark.usefixtures("cluster")

MakeTrainer = Callable[..., TandemTrainer]
Meanwhile = Callable[[Callable[[], None]], None]

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = ("train_fsdp", "train_deepspeed")
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
# Of a run in which something happens on the way.
LONG: Final = 40


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The folder of the built binaries. That there are none is a failure: these tests are never skipped."""
    given = os.environ.get("TANDEM_REAL_BIN_DIR")
    folders = [Path(given)] if given else [ROOT / "target/release", ROOT / "target/debug"]
    built = [folder for folder in folders if all((folder / name).exists() for name in NAMES)]
    if not built:
        pytest.fail("no binaries: run `cargo build -p tandem-cli`, or set TANDEM_REAL_BIN_DIR to their folder")
    return max(built, key=lambda folder: (folder / NAMES[0]).stat().st_mtime)


class Command:
    """The command line, in a storage folder of its own."""

    def __init__(self, binaries: Path, storage: Path, address: str) -> None:
        self.binaries, self.storage = binaries, storage
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
                [self.binaries / f"train_{strategy}", *given, *extra],
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
        return [json.loads(line)["loss"] for line in (self.storage / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def command(binaries: Path, tmp_path: Path, cluster: Cluster) -> Command:
    return Command(binaries, tmp_path, cluster.address)


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


def test_the_command_line_trains_on_ray_as_on_this_machine(command: Command) -> None:
    assert command.run("local", max_steps=6) == 0
    assert command.run("run", *command.ray, max_steps=6, save_steps=4) == 0
    expected = command.losses("local")
    assert len(expected) == 6
    assert command.losses("run") == expected
    assert expected[-1] < expected[0], "something is learnt"
    run_dir = command.storage / "run"
    assert len(kept(run_dir)) == 2
    assert latest(run_dir) == kept(run_dir)[-1]
    assert f"done; metrics and checkpoints are in {run_dir}" in command.log("run").read_text()


def test_the_trainer_does_as_the_command_line_with_the_other_strategy(
    command: Command, make_trainer: MakeTrainer
) -> None:
    assert command.run("local", strategy="deepspeed", max_steps=6, zero_stage=1) == 0
    result = make_trainer(
        strategy="deepspeed",
        mesh=(2, 2),
        binary=str(command.binaries / "train_deepspeed"),
        **FLAGS,
        max_steps=6,
        zero_stage=1,
    ).fit()
    expected = command.losses("local")
    assert command.losses("run") == expected
    assert result.metrics is not None and result.checkpoint is not None
    assert (result.metrics["step"], result.metrics["loss"]) == (6, expected[-1])
    assert Path(result.checkpoint.path).name == latest(command.storage / "run")


@pytest.mark.long
def test_a_killed_worker_and_a_killed_ray_worker_are_survived_with_the_same_losses(
    command: Command, make_trainer: MakeTrainer, meanwhile: Meanwhile
) -> None:
    assert command.run("local", max_steps=LONG) == 0
    trainer = make_trainer(
        mesh=(2, 2),
        binary=str(command.binaries / "train_fsdp"),
        max_failures=2,
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        **FLAGS,
        max_steps=LONG,
        save_steps=2,
    )
    run_dir = command.storage / "run"
    seen: list[dict[int, int]] = []

    def misfortunes() -> None:
        wait_until("a checkpoint is on record", lambda: latest(run_dir) is not None)
        seen.append(workers(run_dir))
        known = set(kept(run_dir))
        os.kill(seen[0][3], signal.SIGKILL)

        def went_on() -> bool:
            now = workers(run_dir)
            replaced = len(now) == 4 and not set(seen[0].values()) & set(now.values())
            return replaced and latest(run_dir) not in {None, *known}

        wait_until("the run has gone on", went_on)
        seen.append(workers(run_dir))
        os.kill(parent(seen[1][1]), signal.SIGKILL)

    meanwhile(misfortunes)
    result = trainer.fit()
    assert command.losses("run") == command.losses("local")
    assert result.metrics is not None and result.metrics["step"] == LONG
    assert len(kept(run_dir)) == 2, "num_to_keep"
    assert latest(run_dir) == kept(run_dir)[-1]
    for attempt in seen:
        assert not any(Path(f"/proc/{pid}").exists() for pid in attempt.values()), "a worker was left behind"


@pytest.mark.long
def test_a_lost_node_is_survived_on_another_with_the_same_losses(
    cluster: Cluster, command: Command, make_trainer: MakeTrainer, meanwhile: Meanwhile
) -> None:
    add_nodes(cluster)
    assert command.run("local", mesh=(2, 1), max_steps=LONG) == 0
    trainer = make_trainer(
        binary=str(command.binaries / "train_fsdp"),
        scaling={"resources_per_worker": SLOT},
        max_failures=1,
        **FLAGS,
        max_steps=LONG,
        save_steps=2,
    )
    run_dir = command.storage / "run"
    seen: list[dict[int, int]] = []

    def lose_node() -> None:
        wait_until("a checkpoint is on record", lambda: latest(run_dir) is not None)
        seen.append(workers(run_dir))
        # An actor's parent is its node's Ray process.
        raylet = parent(parent(seen[0][0]))
        lost = next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet)
        cluster.remove_node(lost, allow_graceful=False)

    meanwhile(lose_node)
    trainer.fit()
    assert command.losses("run") == command.losses("local")
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen[0].values())


def test_a_run_that_fails_for_good_ends_with_the_root_cause(command: Command) -> None:
    # A learning rate at which everything overflows within a few steps.
    overflow = {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 20}
    assert command.run("run", *command.ray, mesh=(2, 1), max_failures=1, **overflow) == 1
    errors = [line for line in command.log("run").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "error: rank " in errors[0] and ("NaN" in errors[0] or "inf" in errors[0])


def test_ctrl_c_on_ray_saves_and_the_run_goes_on_here_with_the_same_losses(command: Command) -> None:
    run_dir = command.storage / "run"
    on_ray = command.start("run", *command.ray, max_steps=100000)
    try:
        wait_until("the workers train", lambda: (run_dir / "metrics.jsonl").exists() or on_ray.poll() is not None)
        on_ray.send_signal(signal.SIGINT)
        code = on_ray.wait(timeout=RUN_LIMIT_S)
    finally:
        on_ray.kill()
        print(command.log("run").read_text())
    assert code == 75
    assert "--resume_from run continues" in command.log("run").read_text()
    done = len(command.losses("run"))
    assert kept(run_dir) == [latest(run_dir)]
    assert command.run("again", resume_from="run", max_steps=done + 4) == 0
    assert command.run("local", max_steps=done + 4) == 0
    assert command.losses("run") == command.losses("local")


def test_a_run_of_this_machine_goes_on_on_ray_with_another_mesh(command: Command) -> None:
    assert command.run("run", max_steps=4) == 0
    assert command.run("run", *command.ray, max_steps=8) == 2, "not without being asked to"
    assert "--resume_from run" in command.log("run").read_text()
    [first] = kept(command.storage / "run")
    assert command.run("again", *command.ray, mesh=(1, 2), resume_from="run", max_steps=8) == 0
    assert command.run("local", max_steps=8) == 0
    assert command.losses("run") == pytest.approx(command.losses("local"), abs=2e-5)
    assert kept(command.storage / "run")[0] == first
    assert latest(command.storage / "run") == kept(command.storage / "run")[1]


def test_what_does_not_fit_or_is_wrong_is_refused(command: Command, make_trainer: MakeTrainer) -> None:
    too_much = [*command.ray[:2], "--resources_per_worker=CPU=0.1,slot=2"]
    assert command.run("run", *too_much, max_steps=1) == 1
    assert "missing: " in command.log("run").read_text()
    with pytest.raises(ConfigError, match=r"train_fsdp refuses its flags: .*--seq_length"):
        make_trainer(binary=str(command.binaries / "train_fsdp"), **{**FLAGS, "seq_length": 1})
    with pytest.raises(ConfigError, match=r"(?s)train_fsdp refuses its flags: .*fp8"):
        make_trainer(binary=str(command.binaries / "train_fsdp"), **{**FLAGS, "dtype": "fp8"})
