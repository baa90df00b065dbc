"""One Ray of several nodes on loopback for all tests, and workers that need no model."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

# Before Ray is imported: its processes inherit these. (Those that load a test's callback come here too, and keep what
# they have.)
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # One process less for each run. (The test of preemption turns it on.)
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray gives up after 30 or 60 s in many places, and tries again from the start: on a machine that is busy with
    # something else it would never get there.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
    "RAY_gcs_server_port_wait_time_s": "240",
    "RAY_gcs_server_request_timeout_seconds": "240",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_agent_register_timeout_ms": "240000",
    # Ray's workers yield to whatever else runs: next to a busy program they would get a thirtieth of a core.
    "RAY_worker_niceness": "0",
    # Of a node that is slow to answer; one whose process is gone is noticed at once.
    "RAY_health_check_timeout_ms": "60000",
}.items():
    os.environ.setdefault(_name, _value)
# Ray's workers import the package, and the callbacks that are defined in tests.
_FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
FAKE_BIN = Path(__file__).parent / "fake_bin"
ROOT: Final = Path(__file__).parents[2]
PROGRAMS: Final = ("train_fsdp", "train_deepspeed")

import ray  # noqa: E402
import ray.train  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tandem_ray import TandemTrainer  # noqa: E402

NODE: Final = {"object_store_memory": 100 * 2**20, "include_dashboard": False, "num_cpus": 2}
ROOM: Final = 3
# What one run may take: many times what it needs.
RUN_LIMIT_S: Final = 400.0
T = TypeVar("T")
# Small enough that four workers fit on one core.
WORKER = {"CPU": 0.1}
SLOT = {"CPU": 0.1, "slot": 1}


def patiently(start: Callable[[], T]) -> T:
    """Starts something of Ray, which may give up on a machine that is busy with something else."""
    for _ in range(2):
        before = _children()
        try:
            return start()
        except Exception as error:  # noqa: BLE001 - Ray raises nothing more precise
            print(f"Ray did not start: {error}")
            # What a failed start leaves behind would slow down the next.
            for pid in _children() - before:
                os.kill(pid, signal.SIGKILL)
    return start()


def _children() -> set[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for children in lists for pid in children.read_text().split()}


def add_nodes(cluster: Cluster) -> None:
    """Brings the cluster to two nodes with room for workers, whatever has become of earlier ones."""
    for _ in range(3):
        for node in [node for node in cluster.worker_nodes if node.dead_processes()]:
            cluster.remove_node(node, allow_graceful=False)
        while len(cluster.worker_nodes) < 2:
            patiently(lambda: cluster.add_node(**NODE, resources={"slot": ROOM}))
        try:
            cluster.wait_for_nodes(timeout=60)
        except TimeoutError:
            # Ray has given up a node whose processes still run, as it does when they were too slow to answer.
            for node in list(cluster.worker_nodes):
                cluster.remove_node(node, allow_graceful=False)
        else:
            return
    cluster.wait_for_nodes(timeout=120)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A head, which the tests are connected to, and two nodes with room for three workers each that ask for a slot."""
    os.environ["TANDEM_BIN_DIR"] = str(FAKE_BIN)
    cluster = patiently(lambda: Cluster(initialize_head=True, connect=False, head_node_args=NODE))
    add_nodes(cluster)
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The folder of the built binaries. That there are none is a failure: these tests are never skipped."""
    given = os.environ.get("TANDEM_REAL_BIN_DIR")
    folders = [Path(given)] if given else [ROOT / "target/release", ROOT / "target/debug"]
    built = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    if not built:
        pytest.fail("no binaries: run `cargo build -p tandem-cli`, or set TANDEM_REAL_BIN_DIR to their folder")
    return max(built, key=lambda folder: (folder / PROGRAMS[0]).stat().st_mtime)


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + RUN_LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.05)


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Does something while a trainer is at work; what it raises fails the test."""
    with ThreadPoolExecutor(1) as threads:
        started: list[Future[None]] = []
        yield lambda action: started.append(threads.submit(action))
        for one in started:
            one.result()


class LimitedTrainer(TandemTrainer):
    """A run that never ends ends its test, and nothing of it is left for the next test.

    Ray's waits cannot be interrupted by what a signal handler raises, so this is not left to pytest-timeout.
    """

    def fit(self) -> ray.train.Result:
        timer = threading.Timer(RUN_LIMIT_S, self._abort)
        timer.start()
        try:
            return super().fit()
        except BaseException:
            self._abort()
            raise
        finally:
            timer.cancel()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., TandemTrainer]:
    """A trainer of fake workers; what is given replaces the defaults."""

    def make(
        *,
        strategy: str = "fsdp",
        name: str = "run",
        mesh: tuple[int, int] = (2, 1),
        max_failures: int = 0,
        checkpoint_config: ray.train.CheckpointConfig | None = None,
        callbacks: list[Any] | None = None,
        scaling: dict[str, Any] | None = None,
        stop_grace_s: float = 120.0,
        binary: str | None = None,
        **flags: Any,
    ) -> TandemTrainer:
        return LimitedTrainer(
            strategy=strategy,
            train_config={"tp_size": mesh[0], "dp_size": mesh[1], **flags},
            scaling_config=ray.train.ScalingConfig(
                num_workers=mesh[0] * mesh[1], **{"resources_per_worker": WORKER, **(scaling or {})}
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=str(tmp_path),
                # Ray would try for ever to start workers that do not fit.
                failure_config=ray.train.FailureConfig(max_failures=max_failures, controller_failure_limit=0),
                checkpoint_config=checkpoint_config,
                callbacks=callbacks,
            ),
            binary=binary,
            stop_grace_s=stop_grace_s,
        )

    return make


@pytest.fixture
def diary(tmp_path: Path) -> Callable[[int], list[dict[str, Any]]]:
    """What a rank wrote down at the start of each attempt."""

    def read(rank: int, name: str = "run") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name / f"fake_rank{rank}.jsonl").read_text().splitlines()]

    return read


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A filter is for the tests of every language: that none of these has the name is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("keyword"):
        session.exitstatus = pytest.ExitCode.OK
