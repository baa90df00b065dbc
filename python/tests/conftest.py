"""Ray on loopback, and workers that need no model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

# Before Ray is imported: its processes inherit these.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
# One process less for each run. (The test of preemption turns it on.)
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
# Ray's workers import the package, and the callbacks that are defined in tests.
_FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
FAKE_BIN = Path(__file__).parent / "fake_bin"

import ray  # noqa: E402
import ray.train  # noqa: E402

from tandem_ray import TandemTrainer  # noqa: E402

OBJECT_STORE_BYTES = 100 * 2**20
T = TypeVar("T")
# Small enough that four workers fit on one core.
WORKER = {"CPU": 0.1}


def patiently(start: Callable[[], T]) -> T:
    """Starts something of Ray, which gives up after 30 s: too soon on a machine that is busy with something else."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:  # noqa: BLE001 - Ray raises nothing more precise
            print(f"Ray did not start: {error}")
    return start()


@pytest.fixture(scope="session")
def one_node() -> Iterator[None]:
    """A Ray of one node for all tests that need no more."""
    os.environ["TANDEM_BIN_DIR"] = str(FAKE_BIN)
    options = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    patiently(lambda: ray.init(**options))
    yield
    ray.shutdown()


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
        return TandemTrainer(
            strategy=strategy,
            train_config={"tp_size": mesh[0], "dp_size": mesh[1], **flags},
            scaling_config=ray.train.ScalingConfig(
                num_workers=mesh[0] * mesh[1], **{"resources_per_worker": WORKER, **(scaling or {})}
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=str(tmp_path),
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
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
